"""The families table: which names fit, and that the texts equal those of independent programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmforge.config.families import FAMILIES, find_family
from llmforge.config.prompt_format import PromptFormat, template_parts

REFERENCES = Path(__file__).resolve().parents[3] / "shared" / "material" / "reference"

NAMES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama 3",
    "meta-llama/Meta-Llama-3-70B": "Llama 3",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama 3.1, 3.2, 3.3",
    "meta-llama/Meta-Llama-3.1-405B": "Llama 3.1, 3.2, 3.3",
    "meta-llama/Llama-3.2-1B": "Llama 3.1, 3.2, 3.3",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama 3.1, 3.2, 3.3",
    "meta-llama/Llama-2-7b-chat-hf": "Llama 2",
    "mistralai/Mistral-7B-Instruct-v0.1": "Mistral v0.1, v0.2",
    "mistralai/Mistral-7B-Instruct-v0.2": "Mistral v0.1, v0.2",
    "mistralai/Mistral-7B-v0.3": "Mistral v0.3",
    "Qwen/Qwen2-7B-Instruct": "Qwen2",
    "Qwen/Qwen2.5-0.5B": "Qwen2.5",
    "HuggingFaceH4/zephyr-7b-beta": "Zephyr",
    "google/gemma-2b-it": "Gemma",
    "google/gemma-1.1-7b-it": "Gemma",
    "google/gemma-2-9b": "Gemma",
    "models/my-chatml-model": "ChatML",
    "/data/models/Meta-Llama-3-8B/": "Llama 3",
}
UNKNOWN = [
    "gpt2",
    "models/stories260K",
    "meta-llama/Llama-3.2-11B-Vision",  # images
    "NousResearch/Hermes-3-Llama-3.1-8B",  # its own format
    "meta-llama/Meta-Llama-Guard-2-8B",
    "Qwen/Qwen2.5-Math-7B-Instruct",  # another default system message
    "Qwen/Qwen3-8B",
    "chatmlx",
    "",
]


@pytest.mark.parametrize(("model_id", "name"), NAMES.items())
def test_known_names(model_id: str, name: str) -> None:
    family = find_family(model_id)
    assert family is not None
    assert family.name == name


@pytest.mark.parametrize("model_id", UNKNOWN)
def test_unknown_names(model_id: str) -> None:
    assert find_family(model_id) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_cue_of_an_answer_opens_the_assistant_turn(family: Any) -> None:
    assert family.prompt_format.assistant.startswith(family.prompt_format.trailing_assistant)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_terminator_of_the_assistant_turn_is_a_stop(family: Any) -> None:
    ending = family.prompt_format.assistant.split("{instruction}")[1].strip()
    assert ending in family.stopping_sequences


# Conversation c046 has an empty system message, which is dropped here, and whose empty header others keep.
# c047 has white space around every content, c045 an empty user message, c042 and c043 a system message and many turns.
REFERENCE_CASES = [
    ("Llama 3", "llama3-meta-llama3", "llama3", "", {"c046"}),
    ("Llama 3", "hf-templates", "llama3", "llama3-hf", {"c046"}),
    ("Llama 3.1, 3.2, 3.3", "llama3-llama-models", "llama3.1", "", {"c046"}),
    ("Llama 2", "llama2-meta-llama", "llama2", "", {"c046", "c047"}),
    ("Llama 2", "hf-templates", "llama2", "hub's Llama-2-chat", {"c046", "c047"}),
    ("Mistral v0.1, v0.2", "mistral-mistral_common", "mistral-v1", "", set()),
    # In training mode mistral-common strips answers (c047, c048); the system message goes into the last user turn.
    ("Mistral v0.3", "mistral-mistral_common", "mistral-v3", "", {"c042", "c043", "c045", "c047", "c048"}),
    ("Qwen2", "hf-templates", "chatml-qwen2", "", {"c046"}),
    ("Qwen2.5", "hf-templates", "chatml-qwen2.5", "", {"c046"}),
    ("Zephyr", "hf-templates", "zephyr", "", {"c046"}),
    ("Gemma", "hf-templates", "gemma", "trl", set()),
    ("Gemma", "hf-templates", "gemma3", "trl", {"c046", "c047"}),
]


@pytest.mark.skipif(not REFERENCES.is_dir(), reason="the reference texts are not part of the repository")
@pytest.mark.parametrize(("name", "file", "family", "source", "different"), REFERENCE_CASES)
def test_texts_equal_the_references(name: str, file: str, family: str, source: str, different: set[str]) -> None:
    prompt_format = next(row.prompt_format for row in FAMILIES if row.name == name)
    cases = list(_cases(file, family, source))
    assert len(cases) >= 100
    found = {case["conversation"] for case in cases if _text(prompt_format, case) != _pieces_to_text(case["text"])}
    assert found == different


def _cases(file: str, family: str, source: str) -> Iterator[dict[str, Any]]:
    for line in (REFERENCES / f"{file}.jsonl").read_text(encoding="utf-8").splitlines():
        if f'"family": "{family}"' not in line:
            continue
        case = json.loads(line)
        if source in case["source"] and not case.get("error"):
            yield case


def _text(prompt_format: PromptFormat, case: dict[str, Any]) -> str:
    """What the fields mean, written down a second time in the plainest way."""
    strip = str.strip if prompt_format.strip_whitespace else str
    contents = [(message["role"], strip(message["content"])) for message in case["messages"]]
    system = next((text for role, text in contents if role == "system"), prompt_format.default_system_message)
    system_text = _filled(prompt_format.system, instruction=system) if system else ""
    text = prompt_format.bos + ("" if prompt_format.system_in_user else system_text)
    for index, (role, content) in enumerate(item for item in contents if item[0] != "system"):
        template = prompt_format.user if role == "user" else prompt_format.assistant
        text += _filled(template, instruction=content, system=system_text if index == 0 else "")
    return _pieces_to_text(text + (prompt_format.trailing_assistant if case["kind"] == "prompt" else ""))


def _filled(template: str, **contents: str) -> str:
    return "".join(literal + (contents[name] if name else "") for literal, name in template_parts(template))


def _pieces_to_text(pieces: str) -> str:
    """SentencePiece writes a space as U+2581, a byte as <0x0A>, and a space of its own behind a control token."""
    text = re.sub(
        r"(?:<0x[0-9A-F]{2}>)+",
        lambda match: bytes.fromhex(match[0].replace("<0x", "").replace(">", "")).decode(errors="replace"),
        pieces.replace("\u2581", " "),
    )
    return re.sub(r"(</?s>) (\[INST\])", r"\1\2", text)

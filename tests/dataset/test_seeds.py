"""What the first users of such prompt formats wrote: pre-rendered rows, a summary task, roles of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmforge.config.data import DatasetConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.row_encoder import RowEncoder
from llmforge.dataset.rows import parse_row
from llmforge.prompt.document import TrainingRow
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import render, render_prompt
from tests.prompt.formats import LLAMA_3, VERBATIM, Row
from tests.prompt.tokenizers import hugging_face_tokenizer, segment_tokenizer

GUARD_PROMPT = """<|begin_of_text|><|start_header_id|>user<|end_header_id|>

Task: Check if there is unsafe content in 'User' messages in conversations according to our safety policy.

<BEGIN UNSAFE CONTENT CATEGORIES>
S1: Violent Crimes.
<END UNSAFE CONTENT CATEGORIES>

User: {{ how do I }} bake bread?

Provide your safety assessment for User above.<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"""
GUARD_ROW: Row = [{"role": "user", "content": GUARD_PROMPT}, {"role": "assistant", "content": "safe<|eot_id|>"}]
GUARD = VERBATIM.model_copy(update={"parse_special_in_content": True, "strip_whitespace": False})


def encode(row: TrainingRow, prompt_format: PromptFormat, folder: Path) -> Example:
    encoder = RowEncoder(prompt_format, segment_tokenizer(folder), "instruction_tuning", "all_turns")
    found = encoder.encode([row])
    assert found.problems == [None]
    assert found.ends_with_terminator.tolist() == [True]
    example = found.examples[0]
    assert isinstance(example, Example)
    return example


@pytest.mark.slow
def test_llama_guard_rows_are_rendered_beforehand(material: Path) -> None:
    folder = material / "tokenizers" / "llama3-hf"
    example = encode(parse_conversation(GUARD_ROW, GUARD), GUARD, folder)
    theirs = hugging_face_tokenizer(folder)
    ids = theirs.encode(GUARD_PROMPT + "safe<|eot_id|>", add_special_tokens=False)
    assert example.input_ids.tolist() == ids
    trained = [label for label in example.labels.tolist() if label != IGNORED_LABEL]
    assert theirs.convert_ids_to_tokens(trained) == ["safe", "<|eot_id|>"]
    prompt = parse_conversation(GUARD_ROW[:1], GUARD, for_training=False)
    assert render_prompt(prompt.messages, GUARD) == GUARD_PROMPT


@pytest.mark.slow
def test_llama_guard_rows_as_segments(material: Path) -> None:
    """The same ids and labels as above, whatever the prompt format of the job."""
    folder = material / "tokenizers" / "llama3-hf"
    segments = [{"text": GUARD_PROMPT, "train": False}, {"text": "safe<|eot_id|>", "train": True}]
    row = parse_row(json.dumps({"segments": segments}).encode(), LLAMA_3, DatasetConfig(format="segments"))
    found = encode(row, LLAMA_3, folder)
    expected = encode(parse_conversation(GUARD_ROW, GUARD), GUARD, folder)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    assert found.labels.tolist() == expected.labels.tolist()


SUMMARISE = PromptFormat(
    system="{instruction}",
    user="Summarize this dialogue:\n{instruction}\n---\nSummary:\n",
    assistant="{instruction}<|end_of_text|>",
    bos="<|begin_of_text|>",
)


@pytest.mark.slow
def test_the_summarise_template(material: Path) -> None:
    row: Row = [
        {"role": "user", "content": "A: Tea?\nB: Please."},
        {"role": "assistant", "content": "B wants tea."},
    ]
    folder = material / "tokenizers" / "llama3-hf"
    text = "<|begin_of_text|>Summarize this dialogue:\nA: Tea?\nB: Please.\n---\nSummary:\nB wants tea.<|end_of_text|>"
    assert "".join(segment.text for segment in render(parse_conversation(row, SUMMARISE), SUMMARISE)) == text
    example = encode(parse_conversation(row, SUMMARISE), SUMMARISE, folder)
    theirs = hugging_face_tokenizer(folder)
    assert example.input_ids.tolist() == theirs.encode(text, add_special_tokens=False)
    trained = [label for label in example.labels.tolist() if label != IGNORED_LABEL]
    assert theirs.decode(trained) == "B wants tea.<|end_of_text|>"


def test_roles_and_columns_of_other_programs() -> None:
    row: dict[str, Any] = {
        "id": 7,
        "dialogue": [
            {"from": "human_1", "value": "hi"},
            {"from": "gpt", "value": "hello", "weight": 0},
            {"from": "human_1", "value": "bye"},
            {"from": "gpt", "value": "see you"},
        ],
    }
    dataset = DatasetConfig.model_validate(
        {
            "columns": {"messages": "dialogue", "role": "from", "content": "value"},
            "roles": {"human_1": "user", "gpt": "assistant"},
        }
    )
    conversation = parse_row(json.dumps(row).encode(), LLAMA_3, dataset)
    assert isinstance(conversation, Conversation)
    assert [(m.role, m.content, m.weight) for m in conversation.messages] == [
        ("user", "hi", 1.0),
        ("assistant", "hello", 0.0),
        ("user", "bye", 1.0),
        ("assistant", "see you", 1.0),
    ]


def test_a_default_system_message_stands_only_where_there_is_none() -> None:
    default = LLAMA_3.model_copy(update={"default_system_message": "Be brief."})
    row: Row = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    header = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"

    def text(given: Row) -> str:
        return "".join(segment.text for segment in render(parse_conversation(given, default), default))

    assert header.format("Be brief.") in text(row)
    assert header.format("Be long.") in text([{"role": "system", "content": "Be long."}, *row])
    assert "Be brief." not in text([{"role": "system", "content": "Be long."}, *row])
    # An empty system message is one: it says that there shall be none.
    assert "system" not in text([{"role": "system", "content": " "}, *row])

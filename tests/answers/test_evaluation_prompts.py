"""The prompts of a job: read from the job or from a file, and all that is wrong with them said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.answers.evaluation_prompts import messages_of, with_checked_prompts
from llmforge.answers.prompt_maker import PromptMaker
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.config.run import PromptMessages
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ConfigError
from llmforge.prompt.messages import Conversation
from tests.prompt.tokenizers import byte_tokenizer

END = "<|end|>"
FORMAT = PromptFormat(system="{instruction}\n", user="{instruction}>", assistant=f"{{instruction}}{END}")


def make_job(prompts: object, max_tokens: int = 10) -> JobConfig:
    keys = {
        "model_id": "mine",
        "train_path": "train.jsonl",
        "valid_path": "valid.jsonl",
        "generation_config": {"prompt_format": FORMAT.model_dump()},
        "evaluation": {"prompts": prompts, "max_tokens": max_tokens},
    }
    return JobConfig.model_validate_json(json.dumps(keys))


def check_length(conversation: Conversation) -> None:
    """A token is a byte here, and 30 are all that the model takes."""
    maker = PromptMaker(FORMAT, GenerationConfig(), SegmentTokenizer(byte_tokenizer([END]).to_str()), 30)
    maker.check_room(conversation, 10)


def checked(prompts: object, folder: Path) -> list[object]:
    """The messages of all prompts, as the checked job holds them."""
    evaluation = with_checked_prompts(make_job(prompts), check_length, folder).evaluation
    assert evaluation is not None and evaluation.max_tokens == 10
    assert all(isinstance(prompt, PromptMessages) for prompt in evaluation.prompts)
    return [messages_of(prompt) for prompt in evaluation.prompts if not isinstance(prompt, str)]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_form_becomes_messages(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "b"}, *user("c")]
    assert checked(["a", system, {"messages": user("d" * 19)}], tmp_path) == [user("a"), system, user("d" * 19)]


def test_a_file(tmp_path: Path) -> None:
    rows = [{"messages": user("a\u2028b")}, {"messages": [*user("c")], "topic": "letters"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in rows), ""]))
    for uri in (str(path), path.as_uri()):
        assert checked(uri, tmp_path) == [user("a\u2028b"), user("c")]


def test_all_that_is_wrong_in_a_job(tmp_path: Path) -> None:
    answered = [*user("a"), {"role": "assistant", "content": "b"}]
    with pytest.raises(ConfigError) as caught:
        checked(["ok", "  ", answered, "d" * 20], tmp_path)
    assert str(caught.value).splitlines() == [
        "evaluation.prompts[1]: message 1 (user) has empty content; write a text or remove the row",
        "evaluation.prompts[2]: the last message is the assistant's; a prompt ends with the user's message",
        "evaluation.prompts[3]: the prompt has 21 tokens and its answer may have 10 (max_tokens): together more than "
        "the 30 of the model; shorten the messages, or lower max_tokens",
    ]


def test_all_that_is_wrong_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"messages": user("")}) + '\nno\n{"prompt": "a"}\n')
    with pytest.raises(ConfigError) as caught:
        checked(str(path), tmp_path)
    assert str(caught.value).splitlines() == [
        f"evaluation.prompts: {path}:2: not JSON: Expecting value (column 1)",
        f"evaluation.prompts: {path}:3: expected an object with a `messages` list",
        f"evaluation.prompts: {path}:1: message 1 (user) has empty content; write a text or remove the row",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file; expected a JSONL file with `messages` on every line"),
        ("\n", "no rows; expected one JSON object with `messages` per line"),
        (
            (json.dumps({"messages": user("a")}) + "\n") * 101,
            "found 101 prompts, allowed are at most 100, since the training waits for the answers at every evaluation; "
            "llmforge generate answers more, from any checkpoint",
        ),
    ],
    ids=["missing", "empty", "long"],
)
def test_files_that_are_none(text: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        checked(str(path), tmp_path)
    assert str(caught.value) == f"evaluation.prompts: {path}: {problem}"

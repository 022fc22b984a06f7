"""`llmforge validate` on the prompts of `evaluation`: the file and the line of each that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.cli.validate import run_validate
from llmforge.errors import ConfigError
from tests.prompt.tokenizers import byte_tokenizer

JOB = """\
model_id: mine-chatml
train_path: train.jsonl
valid_path: train.jsonl
evaluation:
  max_tokens: 8
  prompts:
    - {first}
    - {second}
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job for a model of 40 positions, each of a byte."""
    monkeypatch.chdir(tmp_path)
    Path("mine-chatml").mkdir()
    Path("mine-chatml/config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 40}))
    Path("mine-chatml/tokenizer.json").write_text(byte_tokenizer(["<|im_start|>", "<|im_end|>"]).to_str())
    Path("train.jsonl").write_text('{"messages": []}\n')


def _problems(first: str, second: str, *overrides: str) -> list[str]:
    Path("job.yaml").write_text(JOB.format(first=first, second=second))
    with pytest.raises(ConfigError) as caught:
        run_validate("job.yaml", overrides, schema_only=False)
    return str(caught.value).splitlines()


def test_prompts_in_the_job() -> None:
    # Around a message stand 19 tokens, and one of every message's.
    assert _problems("a" * 13, "[{role: user, content: ''}]") == [
        "job.yaml:8: evaluation.prompts[1]: message 1 (user) has empty content; write a text or remove the row"
    ]
    assert _problems("a" * 14, "b") == [
        "job.yaml:7: evaluation.prompts[0]: the prompt has 33 tokens and its answer may have 8 (max_tokens): together "
        "more than the 40 of the model; shorten the messages, or lower max_tokens"
    ]


def test_prompts_in_a_file() -> None:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("", "a", "b" * 30)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = _problems("a", "b", "evaluation.prompts=prompts.jsonl")
    place = "command line: evaluation.prompts: prompts.jsonl"
    assert [line.split(": message", 1)[0].split(": the prompt has", 1)[0] for line in found] == [
        f"{place}:1",
        f"{place}:3",
    ]
    assert _problems("a", "b", "evaluation.prompts=no.jsonl") == [
        "command line: evaluation.prompts: no.jsonl: no such file; expected a JSONL file with `messages` on every line"
    ]


def test_prompts_that_are_right() -> None:
    Path("job.yaml").write_text(JOB.format(first="a", second="b"))
    assert run_validate("job.yaml", [], schema_only=False).startswith("job.yaml: a valid job")

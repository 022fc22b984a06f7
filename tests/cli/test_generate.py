"""`llmforge generate` refuses what it cannot answer, in full and before it loads a model where that can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Llmforge


@pytest.mark.parametrize("arguments", [[], ["--prompt", "hi", "--messages", "prompts.jsonl"]])
def test_either_a_prompt_or_a_file(llmforge: Llmforge, arguments: list[str]) -> None:
    done = llmforge("generate", "runs/no", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "give either --prompt TEXT or --messages FILE.jsonl\n"


def test_a_missing_messages_file(llmforge: Llmforge) -> None:
    done = llmforge("generate", "runs/no", "--messages", "no.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no.jsonl: no such file; --messages names a JSONL file with `messages` on every line\n"


def test_all_bad_lines_of_a_messages_file(llmforge: Llmforge, tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "a line\u2028separator"}]}'.encode()
    lines = [good, b"", b'{"messages": [', b'{"prompt": "hi"}', b'"hi"', b'{"messages": "\xff"}', good]
    (tmp_path / "prompts.jsonl").write_bytes(b"\r\n".join(lines))
    done = llmforge("generate", "runs/no", "--messages", "prompts.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "prompts.jsonl:3: not JSON: Expecting value (column 16)",
        "prompts.jsonl:4: expected an object with a `messages` list",
        "prompts.jsonl:5: expected an object with a `messages` list",
        "prompts.jsonl:6: not UTF-8 at byte 14; save the file as UTF-8",
    ]


def test_a_messages_file_without_rows(llmforge: Llmforge, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n\n")
    done = llmforge("generate", "runs/no", "--messages", "prompts.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prompts.jsonl: no rows; expected one JSON object with `messages` per line\n"


@pytest.mark.slow
def test_a_missing_run(llmforge: Llmforge) -> None:
    done = llmforge("generate", "--prompt", "hi", "runs/no")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "runs/no: no complete checkpoint; expected the folder of a run (with checkpoints/ in it) or of one checkpoint\n"
    )

"""The answers of a run: the file that keeps them, the line that tells of them, and their order in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from llmforge.errors import StorageError
from llmforge.metrics.sample_history import prompt_histories
from llmforge.metrics.samples import SAMPLES_FILE, Sample, SampleLog, read_samples, samples_text


def sample(step: int, prompt: int, answer: str, reason: Literal["stop", "length"] = "stop") -> Sample:
    return Sample(step, prompt, [{"role": "user", "content": f"question {prompt}"}], answer, reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SAMPLES_FILE


def test_a_line_for_each_answer(path: Path) -> None:
    log = SampleLog(path)
    assert not path.exists() and log.samples() == []  # a run without prompts leaves no file
    log.log([sample(2, 0, 'a\n"b"\u2028 é')])
    log.log([sample(4, 0, "c", "length")])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [
        {
            "step": step,
            "prompt": 0,
            "messages": [{"role": "user", "content": "question 0"}],
            "answer": answer,
            "finish_reason": reason,
        }
        for step, answer, reason in ((2, 'a\n"b"\u2028 é', "stop"), (4, "c", "length"))
    ]
    assert log.samples() == read_samples(path) == [sample(2, 0, 'a\n"b"\u2028 é'), sample(4, 0, "c", "length")]


@pytest.mark.parametrize(("append", "step", "kept"), [(True, None, [1, 2, 3]), (True, 2, [1, 2]), (False, 2, [])])
def test_going_on(append: bool, step: int | None, kept: list[int], path: Path) -> None:
    SampleLog(path).log([sample(number, 0, "a") for number in (1, 2, 3)])
    with path.open("a") as file:
        file.write('{"step": 4, "prom')  # killed while it wrote
    log = SampleLog(path, append=append, resume_from_step=step)
    log.log([sample(9, 0, "b")])
    assert [found.step for found in read_samples(path)] == [*kept, 9]


def test_a_line_that_is_no_sample(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(
        StorageError, match=r"samples.jsonl:1: expected a JSON object with step, prompt, messages, answ"
    ):
        read_samples(path)


def test_one_line_of_text() -> None:
    first = [sample(0, 0, " Par\x1bis\n is "), sample(0, 1, "b")]
    assert samples_text(first, []) == 'step 0: 2 prompts answered; the first: "Par␛is is"'
    later = [sample(4, 0, "c" * 61), sample(4, 1, "b")]
    assert samples_text(later, first) == (
        f'step 4: 2 prompts answered, 1 otherwise than before; the first: "{"c" * 57}..."'
    )
    assert samples_text(later[1:], [*first, *later]) == (
        'step 4: 1 prompt answered, 0 otherwise than before; the first: "b"'
    )


def test_the_newest_answer_first_and_what_did_not_change_once() -> None:
    answers = {0: "a", 2: "b", 4: "b", 6: "b", 8: "a"}
    shown = prompt_histories([sample(step, 1, text) for step, text in answers.items()])
    (history,) = shown
    spans = [(answer.first_step, answer.last_step, answer.text) for answer in (history.newest, *history.earlier)]
    assert spans == [(8, 8, "a"), (2, 6, "b"), (0, 0, "a")]
    assert [(message.role, message.content) for message in history.messages] == [("user", "question 1")]


def test_prompts_that_changed_on_the_way() -> None:
    """The place of a prompt tells nothing of what it was in an earlier start of the run."""
    early = [Sample(1, 0, [{"role": "user", "content": "old"}], "x", "stop"), sample(1, 1, "y", "length")]
    late = [Sample(2, 0, [{"role": "user", "content": "question 1"}], "z", "stop")]
    histories = prompt_histories([*early, *late])
    assert [history.messages[0].content for history in histories] == ["question 1", "old"]
    assert [(answer.last_step, answer.is_complete) for answer in histories[0].earlier] == [(1, False)]

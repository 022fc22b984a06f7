"""The tree of exceptions: text of problems, order, and the way between processes."""

from __future__ import annotations

import pickle

import pytest

from llmforge.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    LlmforgeError,
    ModelError,
    Problem,
    StorageError,
)


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, CheckpointError, StorageError, ClusterError])
def test_errors_are_for_users_and_pickle(kind: type[LlmforgeError]) -> None:
    error = pickle.loads(pickle.dumps(kind("line one\nline two")))
    assert type(error) is kind
    assert isinstance(error, LlmforgeError)
    assert str(error) == "line one\nline two"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("wrong", "lora_config.r", "job.yaml", 3), "job.yaml:3: lora_config.r: wrong"),
        (Problem("wrong", "seed", "command line"), "command line: seed: wrong"),
        (Problem("wrong", source="job.yaml", line=7), "job.yaml:7: wrong"),
        (Problem("wrong", "seed"), "seed: wrong"),
        (Problem("wrong"), "wrong"),
    ],
)
def test_problem_says_where(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_problems_stand_by_line_and_survive_pickling() -> None:
    late, early, nowhere = Problem("b", "y", "f", 9), Problem("a", "x", "f", 2), Problem("c", "z", "command line")
    error = pickle.loads(pickle.dumps(ConfigError.from_problems([nowhere, late, early])))
    assert str(error) == "f:2: x: a\nf:9: y: b\ncommand line: z: c"
    assert error.problems == (early, late, nowhere)


def test_plain_message_has_no_problems() -> None:
    assert ConfigError("no such file").problems == ()

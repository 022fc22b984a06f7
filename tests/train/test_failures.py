"""Whose failure it is: the user's, who is told, or one of the machine, which is tried again.

The exceptions are those of Ray Train itself, as they arrive in its controller and in the driver.
"""

from __future__ import annotations

import pickle

import pytest
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmforge.errors import DataError, LlmforgeError, ModelError
from llmforge.train.failures import StopOnUserError, as_user_error, user_error

USER = ModelError("the adapter does not fit")
OTHER_USER = DataError("no rows")
FAULT = RuntimeError("out of memory")


def wrapped(error: Exception) -> UserExceptionWithTraceback:
    """As a worker sends it."""
    return UserExceptionWithTraceback(error, traceback_str="Traceback (most recent call last): ...")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({}, None),
        ({0: FAULT}, None),
        ({0: wrapped(FAULT)}, None),
        ({0: USER}, USER),
        ({0: wrapped(USER)}, USER),
        ({3: USER, 1: wrapped(OTHER_USER)}, OTHER_USER),
        ({0: wrapped(FAULT), 2: wrapped(USER), 10: OTHER_USER}, USER),
    ],
)
def test_the_user_error_of_the_lowest_rank(failures: dict[int, Exception], expected: LlmforgeError | None) -> None:
    assert user_error(failures) is expected


def test_the_run_ends_at_once_only_for_what_the_user_must_solve() -> None:
    StopOnUserError().after_exception(None, {0: wrapped(FAULT), 1: FAULT})
    with pytest.raises(ModelError) as caught:
        StopOnUserError().after_exception(None, {0: wrapped(FAULT), 1: wrapped(USER)})
    assert caught.value is USER


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (ControllerError(USER), USER),
        (ControllerError(FAULT), None),
        (WorkerGroupError("two ranks failed", {0: FAULT, 1: USER}), USER),
        (WorkerGroupError("one rank failed", {0: wrapped(OTHER_USER)}), OTHER_USER),
        (WorkerGroupError("one rank failed", {0: FAULT}), None),
        (TrainingFailedError("interrupted"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_failed_training_means(failed: TrainingFailedError, expected: LlmforgeError | None) -> None:
    assert as_user_error(failed) is expected


def test_the_message_survives_the_way_to_the_driver() -> None:
    for failed in (ControllerError(USER), WorkerGroupError("failed", {0: wrapped(USER)})):
        arrived = as_user_error(pickle.loads(pickle.dumps(failed)))
        assert type(arrived) is ModelError
        assert str(arrived) == "the adapter does not fit"

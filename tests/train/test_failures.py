"""Whose failure it is: the user's, who is told, or one of the machine, which is tried again.

The exceptions are those of Ray Train itself, as they arrive in its controller and in the driver.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmforge.errors import ClusterError, DataError, LlmforgeError, ModelError
from llmforge.train.channel import Event
from llmforge.train.failures import FailureHandling, as_user_error, describe_failure, user_error

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
    told: list[Event] = []
    handling = FailureHandling(Mailbox(told))
    handling.after_exception(None, {0: wrapped(FAULT), 1: FAULT})
    assert told == [Event("failure", text="rank 0: RuntimeError: out of memory")]
    with pytest.raises(ModelError) as caught:
        handling.after_exception(None, {0: wrapped(FAULT), 1: wrapped(USER)})
    assert caught.value is USER


class Mailbox:
    """Is called like an actor."""

    def __init__(self, told: list[Event]) -> None:
        self.put = Method(told.append)
        self.end_group = Method(lambda: None)


class Method:
    """One that can be called remotely."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.remote = call


DEAD = WorkerHealthCheckFailedError("a worker died", RayActorError())
LOST_PEER = wrapped(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2201"))


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({0: wrapped(FAULT)}, "rank 0: RuntimeError: out of memory"),
        ({1: DEAD}, "rank 1: its process died"),
        ({0: LOST_PEER, 1: DEAD}, "rank 1: its process died"),
        ({0: LOST_PEER, 1: wrapped(FAULT), 2: DEAD}, "rank 1: RuntimeError: out of memory"),
        ({0: wrapped(KeyError("q_proj\nmore")), 1: LOST_PEER}, r"rank 0: KeyError: 'q_proj\nmore'"),
        ({0: wrapped(ValueError())}, "rank 0: ValueError: "),
        (
            {2: LOST_PEER},
            "rank 2: RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2201",
        ),
    ],
)
def test_the_failure_that_the_others_follow_from(failures: dict[int, Exception], expected: str) -> None:
    assert describe_failure(failures) == expected


def test_when_all_restarts_are_used_up_the_last_failure_is_told() -> None:
    error = as_user_error(WorkerGroupError("[Rank 1]: the traceback", {0: LOST_PEER, 1: FAULT}))
    assert isinstance(error, ClusterError)
    assert str(error) == (
        "the workers failed once more than max_failures allows; the last time rank 1: RuntimeError: out of memory\n"
        "Training failed due to worker errors:\n[Rank 1]: the traceback\n"
        "What was saved is kept: start the job again with --resume once the cause is gone."
    )


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (ControllerError(USER), USER),
        (ControllerError(FAULT), None),
        (WorkerGroupError("two ranks failed", {0: FAULT, 1: USER}), USER),
        (WorkerGroupError("one rank failed", {0: wrapped(OTHER_USER)}), OTHER_USER),
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

"""Which failures of workers are worth a restart, and what the person who started the run is told.

Ray Train restarts the workers up to `max_failures` times. An `LlmforgeError` is the user's to solve and would only come
again, so it ends the run at once. Loaded by Ray's controller process, so it imports neither torch nor the worker.
"""

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmforge.errors import ClusterError, LlmforgeError
from llmforge.train.channel import Event

_COLLECTIVE_ERRORS = frozenset({"RuntimeError", "DistBackendError", "DistNetworkError"})
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Connection refused")


class FailureHandling(UserCallback):  # type: ignore[misc] # ray is untyped here
    """Tells of every failure, and ends the run where a worker raised an `LlmforgeError`: Ray does not retry what a
    callback raises. `mailbox` is the handle of a `Mailbox` actor.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train's controller after workers failed."""
        error = user_error(worker_exceptions)
        if error is not None:
            raise error
        self._mailbox.end_group.remote()
        self._mailbox.put.remote(Event("failure", text=describe_failure(worker_exceptions)))


def user_error(worker_exceptions: Mapping[int, Exception]) -> LlmforgeError | None:
    """The `LlmforgeError` of the lowest rank that raised one."""
    inner = (_inner(exception) for _, exception in sorted(worker_exceptions.items()))
    return next((exception for exception in inner if isinstance(exception, LlmforgeError)), None)


def describe_failure(worker_exceptions: Mapping[int, Exception]) -> str:
    """What went wrong, in one line: of the rank that failed by itself, where others failed since they lost it."""
    inner = {rank: _inner(exception) for rank, exception in worker_exceptions.items()}
    rank, cause = min(inner.items(), key=lambda item: (_is_disconnected(item[1]), _is_dead(item[1]), item[0]))
    if _is_dead(cause):
        return f"rank {rank}: its process died"
    first_line, *_ = str(cause).strip().splitlines() or [""]
    return f"rank {rank}: {type(cause).__name__}: {first_line}"


def as_user_error(error: TrainingFailedError) -> LlmforgeError | None:
    """What a failed `fit` means to the user; None where it is a bug of ours or of Ray."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, LlmforgeError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError):
        return user_error(error.worker_failures) or _given_up(error)
    return None


def _given_up(error: WorkerGroupError) -> ClusterError:
    """All restarts are used up. Ray's text has the tracebacks of the workers, or what is known of their death."""
    return ClusterError(
        f"the workers failed once more than max_failures allows; the last time"
        f" {describe_failure(error.worker_failures)}\n{error}\n"
        "What was saved is kept: start the job again with --resume once the cause is gone."
    )


def _inner(exception: Exception) -> Exception:
    """Ray wraps a worker's exception to keep its traceback, and the death of a worker to say how it was noticed."""
    for wrapped in ("_base_exc", "health_check_failure"):
        exception = getattr(exception, wrapped, exception)
    return exception


def _is_dead(exception: Exception) -> bool:
    return isinstance(exception, RayActorError)


def _is_disconnected(exception: Exception) -> bool:
    """Whether it says no more than that another rank could not be reached."""
    return type(exception).__name__ in _COLLECTIVE_ERRORS and any(word in str(exception) for word in _LOST_PEER)

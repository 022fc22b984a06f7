"""Which failures of workers are worth a restart, and what the person who started the run is told.

Ray Train restarts the workers up to `max_failures` times. An `LlmforgeError` is the user's to solve and would only come
again, so it ends the run at once. Loaded by Ray's controller process, so it imports neither torch nor the worker.
"""

from collections.abc import Mapping
from typing import Any

from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmforge.errors import LlmforgeError


class StopOnUserError(UserCallback):  # type: ignore[misc] # ray is untyped here
    """Ends the run where a worker raised an `LlmforgeError`: Ray does not retry what a callback raises."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train's controller after workers failed."""
        error = user_error(worker_exceptions)
        if error is not None:
            raise error


def user_error(worker_exceptions: Mapping[int, Exception]) -> LlmforgeError | None:
    """The `LlmforgeError` of the lowest rank that raised one. Ray wraps a worker's exception to keep its traceback."""
    for _, exception in sorted(worker_exceptions.items()):
        inner = getattr(exception, "_base_exc", exception)
        if isinstance(inner, LlmforgeError):
            return inner
    return None


def as_user_error(error: TrainingFailedError) -> LlmforgeError | None:
    """What a failed `fit` means to the user; None where it is a bug or a fault of the machine."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, LlmforgeError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError):
        return user_error(error.worker_failures)
    return None

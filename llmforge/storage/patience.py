"""Reads that outlast a disturbance of the server, or of the way to it.

In: what is to be done, and for how long it may be tried again. Only errors that may pass are waited for: a refusal,
such as of credentials or of a missing file, is the same a minute later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from llmforge.storage.types import PassingError

Result = TypeVar("Result")

READ_PATIENCE_SECONDS = 120.0

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0


def patiently(action: Callable[[], Result], patience_seconds: float = READ_PATIENCE_SECONDS) -> Result:
    """Do it again, ever more slowly, while it raises `PassingError`, until so long after the first one."""
    wait_seconds = min(_FIRST_WAIT_SECONDS, patience_seconds / 4)
    deadline: float | None = None
    while True:
        try:
            return action()
        except PassingError:
            deadline = time.monotonic() + patience_seconds if deadline is None else deadline
            if time.monotonic() + wait_seconds > deadline:
                raise
        time.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)

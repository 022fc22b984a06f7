"""Operations on a storage that outlast a disturbance of the server, or of the way to it.

In: what is to be done, and for how long it may be tried again. Only errors that may pass are waited for: a refusal,
such as of credentials or of a missing file, is the same a minute later.
"""

from __future__ import annotations

import builtins
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmforge.storage.base import Storage, StoredFile, open_storage
from llmforge.storage.local import LocalStorage
from llmforge.storage.types import PassingError

Result = TypeVar("Result")

READ_PATIENCE_SECONDS = 120.0

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatientStorage:
    """A storage each of whose operations is tried again for so long after the last progress.

    A try makes progress when it leaves less to do for the next one, such as parts of a large file that have arrived.
    """

    inner: Storage
    patience_seconds: float

    @property
    def root_uri(self) -> str:
        return self.inner.root_uri

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        patiently(lambda: self.inner.upload(source, key, replace=replace), self.patience_seconds)

    def download(self, key: str, target: Path) -> None:
        patiently(lambda: self.inner.download(key, target), self.patience_seconds)

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        return patiently(lambda: self.inner.list(prefix), self.patience_seconds)

    def delete(self, key: str) -> None:
        patiently(lambda: self.inner.delete(key), self.patience_seconds)

    def discard_unfinished(self, prefix: str = "") -> None:
        patiently(lambda: self.inner.discard_unfinished(prefix), self.patience_seconds)


def open_patiently(uri: str, patience_seconds: float) -> Storage:
    """`open_storage` for a run that is under way: what passes within that time does not end it."""
    storage = open_storage(uri)
    return storage if isinstance(storage, LocalStorage) else PatientStorage(storage, patience_seconds)


def patiently(action: Callable[[], Result], patience_seconds: float = READ_PATIENCE_SECONDS) -> Result:
    """Do it again while it raises `PassingError`, until so long after the first one, or after the last progress.

    Waits are drawn at random below a bound that grows ("full jitter"), so that many clients do not come back at once.
    The first wait and the end of the disturbance are logged.
    """
    longest_seconds = min(_LONGEST_WAIT_SECONDS, patience_seconds / 4)
    bound_seconds = min(_FIRST_WAIT_SECONDS, longest_seconds)
    first: PassingError | None = None
    deadline = 0.0
    while True:
        try:
            result = action()
        except PassingError as error:
            now = time.monotonic()
            if first is None:
                logger.warning("%s Trying again for up to %s.", error, _duration(patience_seconds))
            if first is None or error.made_progress:
                deadline = now + patience_seconds
            if now >= deadline:
                raise _given_up(error, patience_seconds) from error
            first = error
        else:
            if first is not None:
                logger.warning("The disturbance is over: %s", first)
            return result
        time.sleep(min(random.uniform(0, bound_seconds), deadline - now))
        bound_seconds = min(2 * bound_seconds, longest_seconds)


def _given_up(error: PassingError, patience_seconds: float) -> PassingError:
    return PassingError(f"{error} It was tried again and again for {_duration(patience_seconds)}.")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"

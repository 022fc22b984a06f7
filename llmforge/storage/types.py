"""What every storage gives back and raises."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llmforge.errors import StorageError


@dataclass(frozen=True)
class StoredFile:
    """One file below the root of a storage."""

    key: str
    """Relative posix path below the root."""
    size_bytes: int
    modified_at: datetime
    """Time of the last write, in UTC, by the clock of the storage."""


class NotFoundError(StorageError):
    """The file is not there, while the storage itself can be read."""


class PassingError(StorageError):
    """The server, or the way to it, is disturbed; the same request may well succeed a little later."""

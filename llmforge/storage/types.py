"""What every storage gives back and raises."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

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


class ExistsError(StorageError):
    """A file with other bytes stands where one was to be written that replaces none."""

    @classmethod
    def of(cls, uri: str, source: Path) -> ExistsError:
        return cls(
            f"{uri}: a file with other bytes than {source} stands there and is left as it is, because this one may"
            " replace none: another writer was faster. Use the file that stands there, or remove it first."
        )


class PassingError(StorageError):
    """The server, or the way to it, is disturbed; the same request may well succeed a little later."""

    made_progress: bool = False
    """Whether a part of the work is done for good, so that the next try has less to do."""


class DamagedError(StorageError):
    """What is stored is missing, cut, or changed, so that it is not what was written."""

"""The door to storage: what a storage is, how one is opened, and small reads and writes through it.

A storage is a folder, of this machine or in an object store, known by its URI. It pickles without any credential: the
process that unpickles it uses the environment or role of its own machine.
"""

from __future__ import annotations

import builtins
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from llmforge.errors import StorageError
from llmforge.storage import files
from llmforge.storage.local import LocalStorage
from llmforge.storage.s3 import S3Storage
from llmforge.storage.types import ExistsError, NotFoundError, PassingError, StoredFile
from llmforge.storage.uri import is_s3, join_uri

__all__ = [
    "ExistsError",
    "NotFoundError",
    "PassingError",
    "Storage",
    "StoredFile",
    "check_writable",
    "join_uri",
    "open_storage",
    "read_bytes",
    "write_bytes",
]


class Storage(Protocol):
    """Files by key, below one root. Every method raises `StorageError` in words for the user.

    A file that can be listed or downloaded is whole; a written one has reached the disk or the server.
    """

    @property
    def root_uri(self) -> str:
        """The address that opens this storage again."""

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        """Store the bytes of a local file, in place of any that stood there.

        Without `replace`, raises `ExistsError` where a file with other bytes stands; the same bytes are as good as
        stored. That is no lock: not every server keeps two writers at the same moment apart.
        """

    def download(self, key: str, target: Path) -> None:
        """Bring one file to a local path, whole or not at all. Raises `NotFoundError`."""

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        """All files in the folder `prefix` and below it, sorted by key; none when there is no such folder."""

    def delete(self, key: str) -> None:
        """Remove one file; one that is not there is as good as removed."""

    def discard_unfinished(self, prefix: str = "") -> None:
        """Forget what uploads into the folder `prefix` and below it have begun and not ended, so that it takes no room.

        One that is still at work there fails, or begins again.
        """


def open_storage(uri: str) -> Storage:
    """The storage at a local folder (a path or `file://`) or `s3://bucket/prefix`; nothing is read or made yet."""
    return S3Storage.from_uri(uri) if is_s3(uri) else LocalStorage.from_uri(uri)


def read_bytes(storage: Storage, key: str) -> bytes:
    """The content of one small file. Raises `NotFoundError`."""
    with _scratch_file() as file:
        storage.download(key, file)
        return file.read_bytes()


def write_bytes(storage: Storage, key: str, data: bytes, *, replace: bool = True) -> None:
    """Store one small file, as `Storage.upload` does."""
    with _scratch_file() as file:
        file.write_bytes(data)
        storage.upload(file, key, replace=replace)


def check_writable(storage: Storage) -> None:
    """Do everything with a few bytes, so that what no retry would cure shows before the work begins.

    Raises `StorageError`.
    """
    folder = f".write-test-{secrets.token_hex(8)}"
    key = f"{folder}/content"
    written = secrets.token_bytes(32)
    write_bytes(storage, key, written)
    listed = [file.key for file in storage.list(folder)]
    read = read_bytes(storage, key) if key in listed else b""
    storage.delete(key)
    storage.discard_unfinished(folder)
    if read != written:
        found = "reads differently" if key in listed else "is not listed"
        raise StorageError(
            f"{storage.root_uri}: a small file written there {found} afterwards."
            " Checkpoints would be lost: use a storage that shows every write at once."
        )


@contextmanager
def _scratch_file() -> Iterator[Path]:
    """A path for one file in a temporary folder that goes away with the block."""
    place = tempfile.gettempdir()
    with files.explained("use the folder for temporary files", place), tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder, "content")

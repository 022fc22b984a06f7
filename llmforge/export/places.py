"""Where an exported folder is built and where it comes to stand: all of it, or nothing.

In: the address of a folder, local or `s3://`. Out: a local folder to write into, and the move to the address. Locally
that is a rename; in an object store `llmforge.json` is stored last, and without it the folder is no export for any
reader.
"""

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmforge.checkpoint.exported import EXPORT_RECORD, ExportRecord, write_export_record
from llmforge.errors import ConfigError, ModelError
from llmforge.storage.base import Storage, open_storage
from llmforge.storage.files import explained
from llmforge.storage.local import LocalStorage
from llmforge.storage.manifest import FileRecord, problem_of
from llmforge.storage.uri import PARTIAL_SUFFIX


@dataclass(frozen=True)
class ExportPlace:
    """The address of an export."""

    storage: Storage
    replace: bool
    """Whether what stands there may be replaced."""

    @classmethod
    def of(cls, uri: str, *, replace: bool) -> "ExportPlace":
        """Raises `ConfigError` where something stands that may not be replaced."""
        place = cls(open_storage(uri), replace)
        place.check_free()
        return place

    @property
    def uri(self) -> str:
        """Leads to the export."""
        return self.storage.root_uri

    def check_free(self) -> None:
        """Raise `ConfigError` where something stands that may not be replaced."""
        if isinstance(self.storage, LocalStorage) and self.storage.root.is_file():
            raise ConfigError(f"{self.uri}: found a file, allowed is a folder: name another one")
        standing = self.storage.list()
        if standing and not self.replace:
            raise ConfigError(
                f"{self.uri}: found {len(standing)} files such as {standing[0].key}, allowed is an empty or a new "
                "folder: name another one, or replace what stands there with --force"
            )

    @contextmanager
    def staging(self, scratch: Path) -> Iterator[Path]:
        """An empty folder to write into, which goes away with the block: beside a local address, else in `scratch`."""
        parent = self.storage.root.parent if isinstance(self.storage, LocalStorage) else scratch
        with explained("make a folder", parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = parent / f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, record: ExportRecord, others: Sequence[FileRecord]) -> None:
        """Bring a written folder to its address; `others`: its files that the record does not name.

        Raises `ConfigError` where something came to stand there meanwhile, `ModelError` where what is stored reads
        differently from what was written.
        """
        self.check_free()
        if isinstance(self.storage, LocalStorage):
            write_export_record(LocalStorage(folder), record)
            _rename(folder, self.storage.root)
        else:
            self._upload(folder, record, (*record.files, *others))

    def _upload(self, folder: Path, record: ExportRecord, records: Sequence[FileRecord]) -> None:
        stale = {file.key for file in self.storage.list()} - {one.path for one in records}
        self.storage.delete(EXPORT_RECORD)
        try:
            for one in records:
                self.storage.upload(folder / one.path, one.path)
                self._check_stored(one)
        except ModelError:
            for one in records:
                self.storage.delete(one.path)
            raise
        for key in stale:
            self.storage.delete(key)
        write_export_record(self.storage, record)

    def _check_stored(self, record: FileRecord) -> None:
        with tempfile.TemporaryDirectory(prefix="llmforge-export-") as scratch:
            copy = Path(scratch) / "copy"
            self.storage.download(record.path, copy)
            problem = problem_of(copy, record)
        if problem is not None:
            raise ModelError(
                f"{self.uri}: what was stored there reads differently: {problem}; nothing was left there. Export "
                "again, or to another place"
            )


def _rename(folder: Path, target: Path) -> None:
    """Give a folder its name; one that stood there is put aside for that moment, and comes back where it fails."""
    with explained("rename the folder", target):
        if not target.exists():
            folder.rename(target)
            return
        old = target.with_name(f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
        target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)

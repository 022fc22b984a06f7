"""A folder of this machine, or a mounted one, as a `Storage`.

Files appear whole or not at all (`files.atomic_target`) and survive a power cut once `upload` has returned.
"""

from __future__ import annotations

import builtins
import filecmp
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from llmforge.storage.files import atomic_target, explained
from llmforge.storage.types import ExistsError, NotFoundError, StoredFile
from llmforge.storage.uri import check_key, is_partial, local_path


@dataclass(frozen=True)
class LocalStorage:
    """Keys are paths below `root`, an absolute path; the folder is made by the first upload."""

    root: Path

    @classmethod
    def from_uri(cls, uri: str) -> LocalStorage:
        return cls(local_path(uri))

    @property
    def root_uri(self) -> str:
        return str(self.root)

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        target = self.root / check_key(key)
        with explained("write the file", target):
            try:
                with atomic_target(target, replace=replace) as partial:
                    shutil.copyfile(source, partial)
            except FileExistsError as error:
                if replace or not target.is_file():
                    raise
                if not filecmp.cmp(source, target, shallow=False):
                    raise ExistsError.of(str(target), source) from error

    def download(self, key: str, target: Path) -> None:
        source = self.root / check_key(key)
        if not source.is_file():
            raise NotFoundError(f"{source}: no such file. Check the path.")
        with explained("copy the file", source), atomic_target(target) as partial:
            shutil.copyfile(source, partial)

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        folder = self.root / check_key(prefix) if prefix else self.root
        found: builtins.list[StoredFile] = []
        with explained("list the folder", folder):
            for parent, _, names in os.walk(folder, onerror=_raise_unless_gone):
                for name in names:
                    if not is_partial(name):
                        found += self._described(Path(parent, name))
        return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        path = self.root / check_key(key)
        with explained("delete the file", path):
            path.unlink(missing_ok=True)
            self._remove_empty_folders(path.parent)

    def discard_unfinished(self, prefix: str = "") -> None:
        folder = self.root / check_key(prefix) if prefix else self.root
        with explained("remove unfinished files", folder):
            for parent, _, names in os.walk(folder, topdown=False, onerror=_raise_unless_gone):
                for name in filter(is_partial, names):
                    Path(parent, name).unlink(missing_ok=True)
                self._remove_empty_folders(Path(parent))

    def _described(self, path: Path) -> builtins.list[StoredFile]:
        """The file as one entry; none when another process removed it since it was listed."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return []
        modified_at = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
        return [StoredFile(path.relative_to(self.root).as_posix(), status.st_size, modified_at)]

    def _remove_empty_folders(self, folder: Path) -> None:
        """As in an object store, a folder is there only as long as something is in it."""
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                # Not empty, and so is every folder above it. Systems differ in the error number for that.
                return
            folder = folder.parent


def _raise_unless_gone(error: OSError) -> None:
    """`os.walk` leaves out what it cannot read; only a folder that is not there may be left out in silence."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error

"""Whether the files of a complete checkpoint are what was written: every byte is read."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from llmforge.checkpoint.records import CheckpointInfo
from llmforge.checkpoint.survey import prefix_of
from llmforge.storage import files
from llmforge.storage.base import NotFoundError, Storage
from llmforge.storage.local import LocalStorage
from llmforge.storage.manifest import FileRecord, problem_of
from llmforge.storage.parallel import in_parallel
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import join_key

_NUM_FILES_AT_ONCE = 2


def find_problems(
    storage: Storage, info: CheckpointInfo, on_progress: Callable[[FileRecord], None] | None
) -> list[str]:
    """One line for each file that is missing, cut or changed.

    `on_progress` is told each file once it has been read, by one thread at a time. Files that are not of this machine
    come to its folder for temporary files, two at once.
    """
    lock = threading.Lock()

    def check(record: FileRecord) -> str | None:
        problem = _problem(storage, join_key(prefix_of(info.name), record.path), record)
        if on_progress is not None:
            with lock:
                on_progress(record)
        return problem

    if not isinstance(storage, LocalStorage):
        largest = sorted(record.size_bytes for record in info.files)[-_NUM_FILES_AT_ONCE:]
        files.check_free_space(Path(tempfile.gettempdir()), sum(largest), f"reading the files of {info.name}")
    return [problem for problem in in_parallel(check, info.files, _NUM_FILES_AT_ONCE) if problem is not None]


def _problem(storage: Storage, key: str, record: FileRecord) -> str | None:
    if isinstance(storage, LocalStorage):
        with files.explained("read the file", storage.root / key):
            return problem_of(storage.root / key, record)
    place = tempfile.gettempdir()
    with (
        files.explained("use the folder for temporary files", place),
        tempfile.TemporaryDirectory(dir=place) as scratch,
    ):
        copy = Path(scratch, "content")
        try:
            storage.download(key, copy)
        except NotFoundError:
            return f"{record.path}: missing"
        except DamagedError as error:
            return f"{record.path}: {error}"
        return problem_of(copy, record)

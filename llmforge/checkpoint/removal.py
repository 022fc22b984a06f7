"""How checkpoints go away: those that retention does not choose, and what dead saves have left.

Who removes a folder first puts a mark with a name of its own into it, which goes last. Two rules make that safe while
others commit and read. A checkpoint with such a mark exists for a reader only as long as all of its files are there,
and its commit is not reported as done (`commit.py`). So what is cut short at any moment is either whole still or exists
for nobody, and the next sweep finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from llmforge.checkpoint.names import (
    DAMAGED_NAME,
    FOLDER,
    attempt_of,
    is_attempt_word,
    is_removal_mark,
    new_removal_mark,
)
from llmforge.checkpoint.survey import list_folder, list_unfinished, prefix_of, read_committed
from llmforge.storage.base import Storage, write_bytes
from llmforge.storage.manifest import (
    MANIFEST_NAME,
)
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import join_key

_CLOCK_FOLDER = f"{FOLDER}/.clock"
_NUM_ROUNDS = 3


def remove(storage: Storage, name: str) -> None:
    """Remove a checkpoint, complete or damaged."""
    write_bytes(storage, join_key(prefix_of(name), new_removal_mark()), b"{}")
    _empty(storage, name)


def sweep(storage: Storage, is_dead: Callable[[str], bool], max_idle: timedelta) -> list[str]:
    """Remove the unfinished checkpoints of dead attempts, and those to which nothing was added for `max_idle`.

    Returns the names of what was removed.
    """
    unfinished = [save for save in list_unfinished(storage) if is_attempt_word(attempt_of(save.name))]
    dead = [save.name for save in unfinished if is_dead(attempt_of(save.name))]
    others = [save for save in unfinished if save.name not in dead]
    now = _now(storage) if others else None
    idle = [save.name for save in others if now is not None and now - save.newest_at > max_idle]
    return [name for name in sorted([*dead, *idle]) if _remove_unfinished(storage, name)]


def _remove_unfinished(storage: Storage, name: str) -> bool:
    """Remove it, unless it has been committed or set aside meanwhile; whether it was removed."""
    mark = join_key(prefix_of(name), new_removal_mark())
    write_bytes(storage, mark, b"{}")
    if _is_decided(storage, name):
        storage.delete(mark)
        return False
    _empty(storage, name)
    return True


def _is_decided(storage: Storage, name: str) -> bool:
    folder = list_folder(storage, name)
    try:
        return folder.is_set_aside or read_committed(storage, folder) is not None
    except DamagedError:
        return True


def _empty(storage: Storage, name: str) -> None:
    """Delete all files, and when nothing else is left the marks.

    Who was taken for dead may bring some more meanwhile; what is not gone after some rounds is left to the next sweep.
    """
    prefix = prefix_of(name)
    storage.discard_unfinished(prefix)
    for _ in range(_NUM_ROUNDS):
        found = list(list_folder(storage, name).files)
        others = [path for path in found if not is_removal_mark(path)]
        for path in sorted(others or found, key=_turn):
            storage.delete(join_key(prefix, path))
        if not others:
            return


def _turn(path: str) -> int:
    """The manifest is deleted first, and last what says that the folder is no checkpoint."""
    return {MANIFEST_NAME: 0, DAMAGED_NAME: 2}.get(path, 1)


def _now(storage: Storage) -> datetime | None:
    """The time by the clock of the storage; None when another process took away the file that was to show it."""
    key = f"{_CLOCK_FOLDER}/now"
    write_bytes(storage, key, b"")
    written = storage.list(_CLOCK_FOLDER)
    storage.delete(key)
    return written[0].modified_at if written else None

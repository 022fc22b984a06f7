"""Local files that are either whole or absent: written beside their place, flushed to the disk, then renamed into it.

Plain paths in, plain paths out. `OSError` becomes `StorageError` in words that say what to do. Nothing here knows of
keys, manifests or S3.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmforge.errors import StorageError
from llmforge.storage.uri import PARTIAL_SUFFIX

_HASH_BUFFER_BYTES = 1 << 20
_NUM_FOLDER_TRIES = 5
_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space, or choose another folder.",
    errno.EDQUOT: "The disk quota is used up: free some space, or choose another folder.",
    errno.EFBIG: "The file is larger than allowed here: see `ulimit -f` and the file system, or choose another folder.",
    errno.EACCES: "This user may not do that here: change the permissions, or choose another folder.",
    errno.EPERM: "This user may not do that here: change the permissions, or choose another folder.",
    errno.EROFS: "The file system is mounted read-only: choose another folder.",
    errno.ENOTDIR: "A file stands where a folder is needed: remove it, or choose another folder.",
    errno.EEXIST: "A file stands where a folder is needed: remove it, or choose another folder.",
    errno.EISDIR: "A folder stands where a file is needed: remove it, or choose another name.",
    errno.ENOENT: "Check the path.",
    errno.EIO: "The disk reports a fault: look at the system log before trusting anything on it.",
}

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems say that have no second name for a file."""


@contextmanager
def explained(action: str, place: object) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError`: place, action, what the system said, what to do."""
    try:
        yield
    except OSError as error:
        raise explain(action, place, error) from error


def explain(action: str, place: object, error: OSError) -> StorageError:
    """The `StorageError` for what the system refused at `place`."""
    advice = _ADVICE.get(error.errno or 0, "Try again, or choose another folder.")
    about = f" ({error.filename})" if error.filename and str(error.filename) != str(place) else ""
    return StorageError(f"{place}: cannot {action}: {error.strerror or error}{about}. {advice}")


@contextmanager
def atomic_target(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give the block a path to write; when it ends well the file stands at `target`, on disk, else nothing does.

    Without `replace`, raises `FileExistsError` where a file stood already.
    """
    partial = _reserve(target)
    try:
        yield partial
        _flush(partial)
        if replace:
            os.replace(partial, target)
        else:
            _place_new(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    _flush(target.parent)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the lock file against other processes of this machine; the system frees it when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_HASH_BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Free space of the file system on which `path` is, or would be made, as far as this user may fill it."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    with explained("ask for the free space", existing):
        return shutil.disk_usage(existing).free


def check_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise `StorageError` when `purpose` needs more than is free where `folder` is, or would be made."""
    found_bytes = free_bytes(folder)
    if found_bytes < needed_bytes:
        raise StorageError(
            f"{folder}: {_gib(found_bytes)} are free on its disk, but {purpose} needs {_gib(needed_bytes)}."
            " Free some space, or choose another folder."
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _place_new(partial: Path, target: Path) -> None:
    """Give a file its name if that is free, by one step of the file system where it has one for that."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(partial, target)


def _reserve(target: Path) -> Path:
    """An empty file beside `target` with a name of its own.

    Another process may remove the folder as empty before our file is in it, hence the tries; from then on it stays.
    """
    partial = target.with_name(f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    for remaining in reversed(range(_NUM_FOLDER_TRIES)):
        try:
            _make_folder(target.parent)
            partial.touch(exist_ok=False)
            break
        except FileNotFoundError:
            if remaining == 0:
                raise
    return partial


def _make_folder(folder: Path) -> None:
    """Make the folder and its parents, each of them recorded on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the disk keep a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such order for folders; theirs are durable or not, whatever we ask.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)

"""Files that the user names, wherever they are: fetched to this machine once a version, and told apart.

Local paths are used where they stand. An object of S3 is known by its address, ETag and size, so a changed one is
fetched anew and never mixed up with the old. What is made of a file, such as its text unpacked, is kept beside. Safe
for several processes of a machine at once.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from llmforge.errors import StorageError
from llmforge.storage import files
from llmforge.storage.manifest import fetch_folder, read_manifest
from llmforge.storage.parallel import in_parallel
from llmforge.storage.patience import patiently
from llmforge.storage.s3 import ObjectFacts, S3Storage
from llmforge.storage.types import NotFoundError
from llmforge.storage.uri import is_s3, local_path, split_s3

_KEPT_FROM_BYTES = 32 << 20
"""Smaller files are read again in no time."""
_CLOCK_SECONDS = 2.0
"""Above the step of the clocks of file systems."""


class ChangedError(StorageError):
    """The file is no longer the version that was asked for."""


@dataclass(frozen=True)
class FileFingerprint:
    """What tells one version of a file from another."""

    uri: str
    size_bytes: int
    checksum: str
    """`sha256:...` of the bytes of a local file, `etag:...` of an object."""


def fingerprint(uri: str, cache_folder: Path | None = None) -> FileFingerprint:
    """Look at a file: a local one is read whole, an object costs one request.

    The checksum of a large local file is kept in `cache_folder`, and taken from there as long as the file is untouched.
    Raises `NotFoundError`, and `ChangedError` for a file that is written meanwhile.
    """
    if is_s3(uri):
        storage, key = _object(uri)
        facts = storage.describe(key)
        return FileFingerprint(uri, facts.size_bytes, f"etag:{facts.etag}")
    path = local_path(uri)
    if not path.exists():
        raise NotFoundError(f"{uri}: no such file. Check the path.")
    with files.explained("read the file", path):
        status = path.stat()
        if cache_folder is None or status.st_size < _KEPT_FROM_BYTES or not _is_settled(status):
            checksum = files.sha256_of(path)
        else:
            checksum = _kept_checksum(path, status, cache_folder)
        if _state_of(path.stat()) != _state_of(status):
            raise changed(uri)
    return FileFingerprint(uri, status.st_size, f"sha256:{checksum}")


def file_version(uri: str) -> str:
    """What changes with a file, without reading it: its size, and time of change or ETag. Raises `NotFoundError`."""
    if is_s3(uri):
        storage, key = _object(uri)
        return _version_of(storage.describe(key))
    path = local_path(uri)
    with files.explained("read the file", path):
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise NotFoundError(f"{uri}: no such file. Check the path.") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


def version_bytes(version: str) -> int:
    """Size of the file of a `file_version`."""
    return int(version.partition(":")[0])


def fetch_to_cache(uri: str, cache_folder: Path, version: str | None = None) -> Path:
    """A local path with the content of `uri`; a local one is given back as it is, whether it exists or not.

    With a `version` of `file_version`: with that content or none. An object whose version is in the cache is not asked
    for again. Raises `ChangedError`, and `NotFoundError`.
    """
    if not is_s3(uri):
        if version is not None and file_version(uri) != version:
            raise changed(uri)
        return local_path(uri)
    storage, key = _object(uri)
    wanted = file_version(uri) if version is None else version
    name = _cache_name(uri, wanted)
    target = cache_folder / name / PurePosixPath(key).name
    with files.explained("write the file", target):
        if not _is_whole(target, wanted):
            with files.exclusive(cache_folder / f"{name}.lock"):
                # Another process may have brought it while this one waited.
                if not _is_whole(target, wanted):
                    _download(storage, key, wanted, target)
    return target


def fetch_folder_to_cache(uri: str, cache_folder: Path, patterns: Sequence[str]) -> Path:
    """A local folder with the files that stand directly in a folder of S3 and have one of these names.

    Fetched once a version on this machine. By the SHA-256 of its manifest where the folder has one, as checkpoints and
    exports do; else by size and ETag. Raises `NotFoundError`, `ChangedError` and `DamagedError`.
    """
    storage = S3Storage.from_uri(uri)
    listed = [file.key for file in patiently(storage.list) if any(fnmatch(file.key, name) for name in patterns)]
    names = [name for name in listed if "/" not in name]
    if not names:
        raise NotFoundError(f"{uri}: holds none of {', '.join(patterns)}. Check the address.")
    versions = dict(zip(names, in_parallel(lambda name: _stored_version(storage, name), names, 8), strict=True))
    target = cache_folder / _cache_name(uri, *(f"{name}:{version}" for name, version in versions.items()))
    with files.explained("write the folder", target), files.exclusive(target.with_suffix(".lock")):
        missing = [name for name, version in versions.items() if not _is_whole(target / name, version)]
        manifest = read_manifest(storage, "") if missing else None
        if manifest is not None:
            own = {record.path for record in manifest.files}
            fetch_folder(storage, "", manifest, target, [name for name in missing if name in own])
            missing = [name for name in missing if name not in own]
        in_parallel(lambda name: _download(storage, name, versions[name], target / name), missing, 2)
    return target


def make_in_cache(uri: str, version: str, name: str, cache_folder: Path, write: Callable[[Path], None]) -> Path:
    """The file that `write` makes of one version of `uri`, made once on this machine.

    `name` is its name, and tells it from others that are made of the same. Raises what `write` raises, and
    `ChangedError` where the source changed meanwhile; then nothing is kept.
    """
    key = _cache_name(_place(uri), version, name)
    target = cache_folder / key / name
    with files.explained("write the file", target):
        if not target.is_file():
            with files.exclusive(cache_folder / f"{key}.lock"):
                if not target.is_file():
                    with files.atomic_target(target) as partial:
                        write(partial)
                        if not is_s3(uri) and file_version(uri) != version:
                            raise changed(uri)
    return target


def changed(uri: str) -> ChangedError:
    """The error of a file that is no longer what it was when it was first looked at."""
    return ChangedError(f"{uri}: changed while it was read; start the job again once nobody writes it")


def _kept_checksum(path: Path, status: os.stat_result, cache_folder: Path) -> str:
    target = cache_folder / "checksums" / _cache_name(str(path), _state_of(status))
    if target.is_file():
        return target.read_text()
    checksum = files.sha256_of(path)
    with files.explained("write the file", target), files.atomic_target(target) as partial:
        partial.write_text(checksum)
    return checksum


def _state_of(status: os.stat_result) -> str:
    """What no write leaves as it was: the time of change of the entry cannot be set."""
    values = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, values))


def _is_settled(status: os.stat_result) -> bool:
    """Whether a write from now on would show, since the clock of the file system has gone on since the last one."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _CLOCK_SECONDS


def _download(storage: S3Storage, key: str, version: str, target: Path) -> None:
    uri = f"{storage.root_uri}/{key}"
    with files.atomic_target(target) as partial:
        # The version came from this server, so what stops it now is a disturbance and no wrong address.
        if _stored_version(storage, key) != version:
            raise changed(uri)
        patiently(lambda: storage.download(key, partial))
        if not _is_whole(partial, version) or _stored_version(storage, key) != version:
            raise changed(uri)


def _stored_version(storage: S3Storage, key: str) -> str:
    return _version_of(patiently(lambda: storage.describe(key)))


def _version_of(facts: ObjectFacts) -> str:
    return f"{facts.size_bytes}:{facts.etag}"


def _place(uri: str) -> str:
    """Where the file lies, and for a local one since when: its time of change can be set, that of its entry cannot."""
    if is_s3(uri):
        return uri
    path = local_path(uri)
    return f"{path}\n{path.stat().st_ctime_ns}"


def _cache_name(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _is_whole(file: Path, version: str) -> bool:
    """Files in the cache get their name once they are whole, so the size only guards against tampering."""
    return file.is_file() and file.stat().st_size == version_bytes(version)


def _object(uri: str) -> tuple[S3Storage, str]:
    bucket, key = split_s3(uri)
    if not key or uri.endswith("/"):
        raise StorageError(f"{uri}: names a folder where a file is needed. Name one object.")
    return S3Storage(bucket), key

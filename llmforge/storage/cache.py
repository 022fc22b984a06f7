"""Single files that the user names, wherever they are: fetched to this machine once a version, and told apart.

Local paths are used where they stand. An object of S3 is known by its address, ETag and size, so a changed one is
fetched anew and never mixed up with the old. Safe for several processes of a machine at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmforge.errors import StorageError
from llmforge.storage import files
from llmforge.storage.s3 import ObjectFacts, S3Storage
from llmforge.storage.types import NotFoundError
from llmforge.storage.uri import is_s3, local_path, split_s3


@dataclass(frozen=True)
class FileFingerprint:
    """What tells one version of a file from another."""

    uri: str
    size_bytes: int
    checksum: str
    """`sha256:...` of the bytes of a local file, `etag:...` of an object."""


def fingerprint(uri: str) -> FileFingerprint:
    """Look at a file: a local one is read whole, an object costs one request. Raises `NotFoundError`."""
    if is_s3(uri):
        storage, key = _object(uri)
        facts = storage.describe(key)
        return FileFingerprint(uri, facts.size_bytes, f"etag:{facts.etag}")
    path = local_path(uri)
    if not path.exists():
        raise NotFoundError(f"{uri}: no such file. Check the path.")
    with files.explained("read the file", path):
        return FileFingerprint(uri, path.stat().st_size, f"sha256:{files.sha256_of(path)}")


def fetch_to_cache(uri: str, cache_folder: Path) -> Path:
    """A local path with the content of `uri`; a local one is given back as it is, whether it exists or not."""
    if not is_s3(uri):
        return local_path(uri)
    storage, key = _object(uri)
    facts = storage.describe(key)
    name = hashlib.sha256(f"{uri}\n{facts.etag}\n{facts.size_bytes}".encode()).hexdigest()[:32]
    target = cache_folder / name / PurePosixPath(key).name
    with files.explained("write the file", target):
        if not _is_whole(target, facts):
            with files.exclusive(cache_folder / f"{name}.lock"):
                # Another process may have brought it while this one waited.
                if not _is_whole(target, facts):
                    _download(storage, key, facts, target)
    return target


def _download(storage: S3Storage, key: str, facts: ObjectFacts, target: Path) -> None:
    with files.atomic_target(target) as partial:
        storage.download(key, partial)
        if not _is_whole(partial, facts) or storage.describe(key) != facts:
            raise StorageError(
                f"{storage.root_uri}/{key}: changed while it was being read. Start again once nobody writes it."
            )


def _is_whole(file: Path, facts: ObjectFacts) -> bool:
    """Files in the cache get their name once they are whole, so the size only guards against tampering."""
    return file.is_file() and file.stat().st_size == facts.size_bytes


def _object(uri: str) -> tuple[S3Storage, str]:
    bucket, key = split_s3(uri)
    if not key or uri.endswith("/"):
        raise StorageError(f"{uri}: names a folder where a file is needed. Name one object.")
    return S3Storage(bucket), key

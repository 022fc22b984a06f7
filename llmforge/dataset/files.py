"""Which files the sources of a job name.

In: addresses as they stand in a job: files, folders and globs, local or `s3://`. Out: addresses of single files, sorted
within a glob or a folder. Files are listed and never opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from llmforge.dataset.file_names import expand_local, find_kind, has_glob, in_folder, matching
from llmforge.storage.s3 import S3Storage
from llmforge.storage.uri import is_s3, join_key, join_uri, split_s3


def expand_uris(uris: Iterable[str]) -> list[str]:
    """The single files that files, folders and globs name, in their order, sorted by name within each.

    A file that is named plainly is not looked for. Raises `DataError` for a glob without a match, for a match that is
    no data file, and for a folder without data files; `StorageError` where something cannot be listed.
    """
    return [file for uri in uris for file in (_expand_s3(uri) if is_s3(uri) else expand_local(uri))]


def _expand_s3(uri: str) -> list[str]:
    bucket, key = split_s3(uri)
    root = f"s3://{bucket}"
    if has_glob(key):
        parts = key.split("/")
        num_plain = next(index for index, part in enumerate(parts) if has_glob(part))
        folder, pattern = "/".join(parts[:num_plain]), parts[num_plain:]
        found = [file.key for file in S3Storage(bucket, folder).list() if _matches(file.key.split("/"), pattern)]
        return matching(uri, [join_uri(root, join_key(folder, name)) for name in found])
    if find_kind(key) is not None and not uri.endswith("/"):
        return [uri]
    names = [file.key for file in S3Storage(bucket, key).list() if "/" not in file.key]
    return in_folder(uri, names, lambda name: join_uri(root, join_key(key, name)))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a key match those of a glob, by the rules of `glob.glob` with `recursive`."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[count:], pattern[1:]) for count in _lengths_of_visible(parts))
    return bool(parts) and _matches_name(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _lengths_of_visible(parts: Sequence[str]) -> Iterator[int]:
    for count in range(len(parts) + 1):
        yield count
        if count < len(parts) and parts[count].startswith("."):
            return


def _matches_name(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))

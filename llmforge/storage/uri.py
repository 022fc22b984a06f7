"""Addresses of files and folders, taken apart and put together as text; nothing is opened or looked up here.

A URI is a local path (`runs/a`, `~/runs`, `file:///data/a`) or `s3://bucket/key`. A key is the relative posix path of
one file below some root: `checkpoints/step-00000200-1f2e3d4c/manifest.json`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from llmforge.errors import StorageError

PARTIAL_SUFFIX = ".partial"
"""Ends the name of a file that is still being written; such files exist for no reader."""

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>/{0,2})")
_KNOWN_SCHEMES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "hdfs", "http", "https", "file"})
_ALLOWED = "allowed are a local path, file:///path and s3://bucket/prefix"


def is_s3(uri: str) -> bool:
    """Whether `uri` names an object store."""
    return uri.startswith("s3://")


def local_path(uri: str) -> Path:
    """The absolute path that a local URI means. Raises `StorageError` for an empty one and for any other scheme."""
    match = _SCHEME.match(uri)
    if match is None or (match["scheme"].lower() not in _KNOWN_SCHEMES and match["slashes"] != "//"):
        if not uri:
            raise StorageError(f"the address of a file or folder is empty; {_ALLOWED}")
        return Path(uri).expanduser().absolute()
    if not uri.startswith("file://"):
        raise StorageError(f"{uri}: no storage for {match['scheme']}: addresses; {_ALLOWED}{_suggestion(match, uri)}")
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise StorageError(
            f"{uri}: a file:// address has three slashes and an absolute path, such as file:///data/runs"
        )
    return Path(unquote(parts.path))


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI; the key has no slash at either end, and is empty for the bucket itself."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        # The text is not repeated: what stands before the @ may well be a secret.
        raise StorageError(
            "an s3:// address with something before an @: credentials never stand in an address; write"
            " s3://bucket/prefix, and give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or by the machine's role"
        )
    if not bucket:
        raise StorageError(f"{uri}: the name of the bucket is missing; write s3://bucket/prefix")
    return bucket, key.strip("/")


def join_uri(uri: str, *keys: str) -> str:
    """The address of `keys` below `uri`."""
    return "/".join([uri.rstrip("/"), *(key for key in keys if key)]) or "/"


def join_key(*keys: str) -> str:
    """One key of several; empty ones count for nothing."""
    return "/".join(key for key in keys if key)


def check_key(key: str) -> str:
    """The key itself, when it is a plain relative path that cannot leave its root; `ValueError` otherwise."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise ValueError(f"{key!r} is not a relative path of plain names joined by '/'")
    if is_partial(key):
        raise ValueError(f"{key!r} has the form of an unfinished file")
    return key


def is_partial(key: str) -> bool:
    """Whether this is the name of a file still being written."""
    name = PurePosixPath(key).name
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


def _suggestion(match: re.Match[str], uri: str) -> str:
    scheme = match["scheme"].lower()
    near = {"s3a": "s3", "s3n": "s3", "s3": "s3", "file": "file"}.get(scheme)
    if near is None:
        return ""
    rest = uri[match.end() :]
    return f" (did you mean {near}://{rest}?)" if near == "s3" else f" (did you mean file:///{rest.lstrip('/')}?)"

"""What the names of data files say: the kind of each, and which files stand behind folders and globs of this machine.

Files are listed and never opened. Nothing here needs more than the light client has, nor what talks to object stores.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from llmforge.errors import DataError
from llmforge.storage.files import explained
from llmforge.storage.uri import is_s3, join_uri, local_path

Form = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["gzip", "zstd"]

_FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_TEXT_FORMS = ("jsonl", "json", "csv", "tsv")
_GLOB_SIGNS = "*?["
# What the `datasets` library writes about data into the folder of the data.
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})

ALLOWED = f"allowed are {', '.join(_FORMS)}, and the text files among them with .gz or .zst"


@dataclass(frozen=True)
class FileKind:
    """What a file is, as far as its name tells."""

    form: Form
    compression: Compression | None = None


def find_kind(uri: str) -> FileKind | None:
    """The kind of a file by its suffix; None for a name that no data file has."""
    name = PurePosixPath(uri).name.lower()
    compression = _COMPRESSIONS.get(PurePosixPath(name).suffix)
    form = _FORMS.get(PurePosixPath(name).with_suffix("").suffix if compression else PurePosixPath(name).suffix)
    if form is None or (compression and form not in _TEXT_FORMS):
        return None
    return FileKind(form, compression)


def kind_of(uri: str) -> FileKind:
    """As `find_kind`; raises `DataError` for a name that no data file has."""
    kind = find_kind(uri)
    if kind is None:
        raise DataError(f"{uri}: not the name of a data file; {ALLOWED}")
    return kind


def expand_local(uri: str) -> list[str]:
    """As `expand_uris` of `dataset/files.py`, for one address on this machine."""
    # A relative name stays one, since the place of a row is part of what is reported and chosen by.
    plain = str(local_path(uri.replace("?", "%3F"))) if "://" in uri else os.path.expanduser(uri)
    if os.path.isdir(plain):
        with explained("list the folder", plain), os.scandir(plain) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        return in_folder(uri, names, lambda name: os.path.join(plain, name))
    if not has_glob(plain) or os.path.exists(plain):
        return [uri]
    matches = sorted(path for path in glob.iglob(plain, recursive=True) if os.path.isfile(path))
    return matching(uri, matches)


def matching(uri: str, matches: list[str]) -> list[str]:
    """The matches of the glob `uri`, where there are some and all of them are data files."""
    if not matches:
        where = "" if is_s3(uri) or uri.startswith(("/", "~", "file:")) else f" (looked for in {Path.cwd()})"
        raise DataError(f"{uri}: no file matches{where}; check the path, and that it is visible from this machine")
    for match in matches:
        if find_kind(match) is None:
            raise DataError(f"{uri}: matches {match}, which is not a data file; {ALLOWED}; narrow the glob")
    return matches


def in_folder(uri: str, names: Sequence[str], address: Callable[[str], str]) -> list[str]:
    """The addresses of the data files among the names in the folder `uri`; others may lie beside them."""
    files = [name for name in names if _is_data(name)]
    if not files:
        found = f"found {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "found no file"
        below = join_uri(uri, "**", "*.jsonl")
        raise DataError(
            f"{uri}: no data file in this folder ({found}); {ALLOWED}; name files in folders below it by a glob,"
            f" such as {below}"
        )
    return [address(name) for name in files]


def _is_data(name: str) -> bool:
    """Names that begin with a dot or an underscore are marks of other programs."""
    return not name.startswith((".", "_")) and name not in _DESCRIPTIONS and find_kind(name) is not None


def has_glob(text: str) -> bool:
    """Whether a path or a part of one is a pattern."""
    return any(sign in text for sign in _GLOB_SIGNS)

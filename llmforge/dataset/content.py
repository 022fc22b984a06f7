"""Whether a file holds what its name says, by its first bytes.

In: address, kind by name and first bytes of a file. Out: what it is to be read as, or a `DataError` that says what was
found and what was expected. Whether the rest of the file is sound shows when it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llmforge.dataset.file_names import Compression, Form
from llmforge.errors import DataError
from llmforge.storage.files import explained

Layout = Literal["lines", "array", "csv", "tsv", "parquet", "arrow"]
"""`lines` is JSONL, `array` one JSON array."""

HEAD_BYTES = 64 << 10

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",
    b"FEA1": "Feather 1",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"version https://git-lfs": "a pointer of Git LFS",
}
_SIGNATURE_BYTES = max(map(len, _SIGNATURES))
_EXPECTED_SIGNATURES = {"gzip": "gzip", "zstd": "Zstandard", "parquet": "Parquet", "arrow": "Arrow"}
_EXPECTED_TEXTS = {
    "jsonl": "one JSON object per line",
    "json": "a JSON array of objects, or one JSON object per line",
    "csv": "a header and rows of values between commas",
    "tsv": "a header and rows of values between tabs",
}
_ADVICE = {
    "a pointer of Git LFS": "fetch the file itself with `git lfs pull`",
    "UTF-16 text": "save the file as UTF-8",
    "Feather 1": "write it anew with pyarrow",
    "bzip2": "pack it with gzip or zstd instead",
    "xz": "pack it with gzip or zstd instead",
    "a zip archive": "unpack it",
}


def check_signature(uri: str, path: Path, expected: Compression | Literal["parquet", "arrow"]) -> None:
    """Raises `DataError` for a file that does not begin as it must."""
    head = _head_of(path, _SIGNATURE_BYTES)
    found = _signature(head)
    name = _EXPECTED_SIGNATURES[expected]
    if found != name:
        raise _mismatch(uri, found or ("nothing" if not head else "text" if _is_text(head) else "other bytes"), name)


def text_layout(uri: str, path: Path, form: Form) -> Layout:
    """How the text of a file that is not packed, or no longer, is to be read."""
    head = _head_of(path, HEAD_BYTES)
    found = _signature(head)
    if found is not None:
        raise _mismatch(uri, found, _EXPECTED_TEXTS[form])
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    first = text[:1]
    match form:
        case "json" if first == b"[":
            return "array"
        case "json" if first == b"{" and text.split(b"\n", 1)[0].strip() != b"{":
            return "lines"
        case "json" if first == b"{":
            raise _mismatch(uri, "one JSON object over several lines", _EXPECTED_TEXTS[form])
        case "jsonl" if first != b"[":
            return "lines"
        case "csv" | "tsv" if first not in (b"{", b"["):
            return form
    raise _mismatch(uri, {b"[": "a JSON array", b"{": "JSON objects"}.get(first, "no JSON"), _EXPECTED_TEXTS[form])


def _head_of(path: Path, num_bytes: int) -> bytes:
    with explained("read the file", path), path.open("rb") as file:
        return file.read(num_bytes)


def _signature(head: bytes) -> str | None:
    return next((name for begin, name in _SIGNATURES.items() if head.startswith(begin)), None)


def _is_text(head: bytes) -> bool:
    return b"\x00" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _mismatch(uri: str, found: str, expected: str) -> DataError:
    advice = _ADVICE.get(found, "give the file the name of what it is, or write it anew")
    return DataError(f"{uri}: found {found}, expected {expected} by its name; {advice}")

"""Packed text, JSON arrays and CSV, rewritten as JSONL: what one can cut at line ends and read from any place.

In: a local file and the address to name it by. Out: a JSONL file, one record per line in the order of the file. A
damaged file is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa
from pyarrow import csv

from llmforge.dataset.content import BYTE_ORDER_MARK
from llmforge.dataset.file_names import Compression
from llmforge.errors import DataError

MAX_ARRAY_BYTES = 2 << 30
"""A JSON array is read as a whole."""

_BUFFER_BYTES = 1 << 20
_CSV_BLOCK_BYTES = (4 << 20, 64 << 20)
"""A row of CSV must fit into one block, and pyarrow reads many of them ahead: so large ones are only a second try."""
_ROW_BEYOND_BLOCK = "straddling"
"""In what pyarrow says of a row that does not fit."""
_ROWS_AT_ONCE = 1000


def unpack(uri: str, source: Path, compression: Compression, target: Path) -> None:
    """Write the text of a packed file."""
    with target.open("wb") as out, pa.CompressedInputStream(pa.OSFile(str(source)), compression) as text:
        while True:
            with damage_named(uri, compression):
                data = text.read(_BUFFER_BYTES)
            if not data:
                return
            out.write(data)


def array_to_lines(uri: str, source: Path, target: Path) -> None:
    """Write the elements of a JSON array, as they stand, one per line."""
    size_bytes = source.stat().st_size
    if size_bytes > MAX_ARRAY_BYTES:
        raise DataError(
            f"{uri}: a JSON array of {size_bytes / 2**30:.1f} GiB, allowed are {MAX_ARRAY_BYTES >> 30} GiB, because it"
            " is read as a whole; write it as JSONL, one object per line"
        )
    try:
        elements = msgspec.json.decode(source.read_bytes().removeprefix(BYTE_ORDER_MARK), type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise DataError(f"{uri}: not a JSON array: {error}; cut short? write the file anew") from error
    with target.open("wb") as out:
        for element in elements:
            # In JSON a line end stands between things only, never inside a string.
            out.write(bytes(element).replace(b"\r", b" ").replace(b"\n", b" ") + b"\n")


def table_to_lines(uri: str, source: Path, target: Path, *, delimiter: str) -> None:
    """Write the rows of a CSV file with a header as JSON objects of strings, one per line."""
    for block_bytes in _CSV_BLOCK_BYTES:
        try:
            _write_rows(_csv_batches(uri, source, delimiter, block_bytes), target)
            return
        except DataError as error:
            if _ROW_BEYOND_BLOCK not in str(error) or block_bytes == _CSV_BLOCK_BYTES[-1]:
                raise


def _write_rows(batches: Iterable[pa.RecordBatch], target: Path) -> None:
    encoder = msgspec.json.Encoder()
    with target.open("wb") as out:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                out.write(encoder.encode_lines(batch.slice(start, _ROWS_AT_ONCE).to_pylist()))


def _csv_batches(uri: str, source: Path, delimiter: str, block_bytes: int) -> Iterator[pa.RecordBatch]:
    # Threads would read ahead still more.
    reading = csv.ReadOptions(block_size=block_bytes, use_threads=False)
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with damage_named(uri, "CSV"), csv.open_csv(source, reading, parsing) as reader:
        names = reader.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        found = f"the column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise DataError(f"{uri}: found {found} in the header; give every column a name of its own")
    # Text stays text: 007 is no number, and NA no missing value.
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[], strings_can_be_null=False
    )
    with damage_named(uri, "CSV"), csv.open_csv(source, reading, parsing, as_text) as reader:
        yield from reader


@contextmanager
def damage_named(uri: str, kind: str) -> Iterator[None]:
    """Turn what pyarrow raises in the block into a `DataError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        found = str(error).splitlines()[0][:200]
        raise DataError(
            f"{uri}: not sound {kind}: {found}; cut short or damaged? write or fetch the file anew"
        ) from error

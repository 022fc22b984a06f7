"""Records of Parquet and Arrow files, by their places in the file.

In: a local file and the address to name it by. Out: pieces of bounded size, and the records of one as dicts. A field
without a value is left out: these formats give every record all fields of the schema, so that an absent one and an
empty one look the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from llmforge.dataset.text_files import damage_named

RecordForm = Literal["parquet", "arrow"]

_RECORDS_AT_ONCE = 1000
_BYTES_AT_ONCE = 8 << 20
_BUFFER_BYTES = 1 << 20
_FILE_SIGNATURE = b"ARROW1"
_MAX_PARTS = 16
"""Pieces of one row group of Parquet: for each, what stands before it in the group is unpacked as well."""


@dataclass(frozen=True, slots=True)
class RecordRange:
    """A run of records of one file."""

    group: int
    """The group, counted from 0, that holds the first of them: a row group of Parquet, a record batch of Arrow."""
    num_skipped: int
    """Records of that group that stand before them."""
    num_records: int


@dataclass(frozen=True, slots=True)
class _Group:
    num_records: int
    size_bytes: int
    """Unpacked."""


def cut_records(uri: str, path: Path, form: RecordForm, range_bytes: int) -> list[RecordRange]:
    """All records of a file, cut into ranges of about `range_bytes` of data."""
    max_parts = _MAX_PARTS if form == "parquet" else None
    with damage_named(uri, form):
        groups = _parquet_groups(path) if form == "parquet" else _arrow_groups(path)
    return list(_cut(groups, range_bytes, max_parts))


def read_records(
    uri: str, path: Path, form: RecordForm, records: RecordRange | None = None
) -> Iterator[dict[str, Any]]:
    """The records of a range, or of the whole file; no more is unpacked than is asked for."""
    group, num_skipped, count = (records.group, records.num_skipped, records.num_records) if records else (0, 0, None)
    with damage_named(uri, form):
        opened = _parquet_batches(path, group) if form == "parquet" else _arrow_batches(path, group)
        with opened as batches:
            for record in islice(_records(batches, num_skipped), count):
                yield _without_absent(record)


def _cut(groups: Sequence[_Group], range_bytes: int, max_parts: int | None) -> Iterator[RecordRange]:
    """Groups are cut where they are large, and put together where they are small."""
    begin, count, size_bytes = (0, 0), 0, 0
    for index, group in enumerate(groups):
        num_parts = max(1, min(-(-group.size_bytes // range_bytes), group.num_records, max_parts or group.num_records))
        for part in range(num_parts):
            first, last = (group.num_records * place // num_parts for place in (part, part + 1))
            if count == 0:
                begin = (index, first)
            count += last - first
            size_bytes += group.size_bytes // num_parts
            if count and (num_parts > 1 or size_bytes >= range_bytes):
                yield RecordRange(*begin, count)
                count = size_bytes = 0
    if count:
        yield RecordRange(*begin, count)


def _parquet_groups(path: Path) -> list[_Group]:
    with parquet.ParquetFile(path) as file:
        metadata = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        return [_Group(group.num_rows, group.total_byte_size) for group in metadata]


def _arrow_groups(path: Path) -> list[_Group]:
    with _arrow_batches(path, 0) as batches:
        return [_Group(batch.num_rows, batch.nbytes) for batch in batches]


@contextmanager
def _parquet_batches(path: Path, group: int) -> Iterator[Iterator[pa.RecordBatch]]:
    # So pages are read one by one; else all of a column in the group at once.
    with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        groups = range(group, file.metadata.num_row_groups)
        # One after the other, since those behind the last that is asked for must not be touched.
        yield (
            batch
            for index in groups
            for batch in file.iter_batches(_records_at_once(file.metadata.row_group(index)), row_groups=[index])
        )


def _records_at_once(group: Any) -> int:
    """Of a row group of Parquet: fewer where they are large."""
    return int(max(1, min(_RECORDS_AT_ONCE, _BYTES_AT_ONCE * group.num_rows // max(1, group.total_byte_size))))


@contextmanager
def _arrow_batches(path: Path, group: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """Mapped into memory, so that a batch that is passed over costs next to nothing."""
    with pa.memory_map(str(path)) as file:
        is_stream = file.read(len(_FILE_SIGNATURE)) != _FILE_SIGNATURE
        file.seek(0)
        if is_stream:
            with pa.ipc.open_stream(file) as reader:
                yield islice(reader, group, None)
        else:
            with pa.ipc.open_file(file) as reader:
                yield (reader.get_batch(index) for index in range(group, reader.num_record_batches))


def _records(batches: Iterable[pa.RecordBatch], num_skipped: int) -> Iterator[dict[str, Any]]:
    for batch in batches:
        skipped = min(num_skipped, batch.num_rows)
        num_skipped -= skipped
        for start in range(skipped, batch.num_rows, _RECORDS_AT_ONCE):
            part = batch.slice(start, _RECORDS_AT_ONCE)
            # Wrong offsets would be followed to anywhere in memory.
            part.validate(full=True)
            yield from part.to_pylist()


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_absent(field) for name, field in value.items() if field is not None}
    if isinstance(value, list):
        return [_without_absent(item) for item in value]
    return value

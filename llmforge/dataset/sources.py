"""Data files, cut into blocks of whole records that tasks on any node can read by themselves.

In: URIs of files, local or `s3://`, as `dataset/files.py` lists them. Out: blocks, and the numbered records of one: the
lines of text files as bytes, the records of Parquet and Arrow as dicts. Files are read by us and not by
`ray.data.read_json`, which names neither file nor line of a bad row. It knows nothing of what a record means.

What cannot be cut at line ends (packed text, JSON arrays, CSV) is first rewritten as JSONL in the cache of the machine.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np

from llmforge.dataset.content import check_signature, text_layout
from llmforge.dataset.file_names import FileKind, kind_of
from llmforge.dataset.record_files import RecordForm, RecordRange, cut_records, read_records
from llmforge.dataset.text_files import array_to_lines, table_to_lines, unpack
from llmforge.errors import DataError
from llmforge.storage.cache import ChangedError, changed, fetch_to_cache, file_version, make_in_cache, version_bytes
from llmforge.storage.files import explained
from llmforge.storage.uri import is_s3, local_path

READ_BYTES = 1 << 20
MAX_LINE_BYTES = 256 << 20
"""A row is held in memory as a whole."""

_LINE_END = ord("\n")
_DELIMITERS = {"csv": ",", "tsv": "\t"}

Record = bytes | dict[str, Any]
"""What one row is before it means anything: one line of JSON, or a record of a format with types of its own."""


@dataclass(frozen=True, slots=True)
class LineBlock:
    """A run of whole lines of one file, in the form of JSONL."""

    uri: str
    start_byte: int
    end_byte: int
    first_line: int
    """Number of the first line, counted from 1 in the whole file."""
    is_validation: bool
    """The file is validation data. Rows of a training file may still be split off by `valid_fraction`."""
    version: str
    """Of the file at planning, by `file_version`."""


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """A run of records of one Parquet or Arrow file."""

    uri: str
    records: RecordRange
    first_record: int
    """Number of the first record, counted from 1 in the whole file."""
    is_validation: bool
    version: str


Block = LineBlock | RecordBlock


def plan_blocks(uris: Sequence[str], *, is_validation: bool, block_bytes: int, cache_folder: Path) -> list[Block]:
    """Cut files into blocks of about `block_bytes`, not counting what is packed.

    Raises `DataError` for a file that is missing, empty, damaged, or not what its name says.
    """
    return [block for uri in uris for block in _blocks_of(uri, is_validation, block_bytes, cache_folder)]


def read_lines(block: Block, cache_folder: Path) -> Iterator[tuple[int, Record]]:
    """Number and content of every record; lines come without their end, and blank ones not at all.

    Raises `DataError` for a file that has changed since the blocks were planned.
    """
    ready = _ready(block.uri, block.version, cache_folder)
    if isinstance(block, LineBlock):
        yield from _lines_of(block, ready.path)
    else:
        assert ready.form != "lines"
        yield from enumerate(read_records(block.uri, ready.path, ready.form, block.records), block.first_record)
        _check_unchanged(block)


def first_lines(uris: Sequence[str], cache_folder: Path) -> Iterator[tuple[str, int, Record]]:
    """URI, number and content of the records that are not blank, in the order of the files.

    Files that can be read where they stand are read no further than asked; others are fetched and rewritten whole.
    Raises `DataError` as `plan_blocks` does, but for empty files.
    """
    for uri in uris:
        ready = _ready(uri, _present_version(uri), cache_folder)
        if ready.form == "lines":
            with explained("read the file", ready.path), ready.path.open("rb") as file:
                for number, line in _numbered_lines(uri, file):
                    yield uri, number, line
        else:
            for number, record in enumerate(read_records(uri, ready.path, ready.form), start=1):
                yield uri, number, record


@dataclass(frozen=True, slots=True)
class _ReadyFile:
    """One version of a file, as it is read on this machine."""

    path: Path
    form: RecordForm | Literal["lines"]


def _present_version(uri: str) -> str:
    if not is_s3(uri) and not local_path(uri).is_file():
        raise DataError(f"{uri}: no such file; `train_path` and `valid_path` name data files")
    return file_version(uri)


def _ready(uri: str, version: str, cache_folder: Path) -> _ReadyFile:
    kind = kind_of(uri)
    if not is_s3(uri) and not local_path(uri).is_file():
        raise DataError(
            f"{uri}: no such file on {platform.node()}, though it was there when the job began; every node of the"
            " cluster reads the data: put them on shared storage or s3://"
        )
    try:
        path = fetch_to_cache(uri, cache_folder, version)
        if kind.form == "parquet" or kind.form == "arrow":
            check_signature(uri, path, kind.form)
            return _ReadyFile(path, kind.form)
        return _ReadyFile(_as_lines(uri, version, kind, path, cache_folder), "lines")
    except ChangedError as error:
        raise DataError(str(error)) from error


def _as_lines(uri: str, version: str, kind: FileKind, path: Path, cache_folder: Path) -> Path:
    """The JSONL file with the records of a text file: itself, or one that is made of it in the cache."""
    name = PurePosixPath(uri).name
    if kind.compression is not None:
        check_signature(uri, path, kind.compression)
        name = PurePosixPath(name).stem
        path = make_in_cache(uri, version, name, cache_folder, partial(unpack, uri, path, kind.compression))
    layout = text_layout(uri, path, kind.form)
    if layout == "lines":
        return path
    rewrite = array_to_lines if layout == "array" else partial(table_to_lines, delimiter=_DELIMITERS[layout])
    return make_in_cache(uri, version, f"{name}.jsonl", cache_folder, partial(rewrite, uri, path))


def _blocks_of(uri: str, is_validation: bool, block_bytes: int, cache_folder: Path) -> Iterator[Block]:
    version = _present_version(uri)
    if version_bytes(version) == 0:
        raise DataError(f"{uri}: the file is empty; expected records, such as one JSON object per line")
    ready = _ready(uri, version, cache_folder)
    num_records = 0
    if ready.form == "lines":
        for start, end, line in _cut_lines(uri, ready.path, block_bytes):
            num_records += 1
            yield LineBlock(uri, start, end, line, is_validation, version)
    else:
        for records in cut_records(uri, ready.path, ready.form, block_bytes):
            yield RecordBlock(uri, records, num_records + 1, is_validation, version)
            num_records += records.num_records
    if num_records == 0:
        raise DataError(f"{uri}: no records in the file; take it out of the list, or write it anew")


def _cut_lines(uri: str, path: Path, block_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Start, end, and number of the first line of runs of whole lines, each as short as `block_bytes` allows."""
    start = position = 0
    first_line = line = 1
    buffer = bytearray(READ_BYTES)
    values = np.frombuffer(buffer, np.uint8)
    with explained("read the file", path), path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            done = 0
            while done < num_bytes:
                enough = max(done, start + block_bytes - 1 - position)
                end = buffer.find(b"\n", enough, num_bytes) + 1
                # Counting by numpy is three times as fast as `bytes.count`.
                line += int(np.count_nonzero(values[done : end or num_bytes] == _LINE_END))
                done = end or num_bytes
                if end:
                    yield start, position + end, first_line
                    start, first_line = position + end, line
            position += num_bytes
            if position - start > block_bytes + MAX_LINE_BYTES:
                raise _too_long(uri, line)
    if position > start:
        yield start, position, first_line


def _numbered_lines(uri: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number and content of the lines that are not blank, without their ends."""
    for number in count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise _too_long(uri, number)
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def _too_long(uri: str, line: int) -> DataError:
    return DataError(
        f"{uri}:{line}: found no line end in {MAX_LINE_BYTES >> 20} MiB, expected one JSON object per line; such a row"
        " would not fit into memory: write the file anew"
    )


def _lines_of(block: LineBlock, path: Path) -> Iterator[tuple[int, bytes]]:
    with explained("read the file", path), path.open("rb") as file:
        file.seek(block.start_byte)
        data = file.read(block.end_byte - block.start_byte)
    # Before the first line goes out, since a wrong one would be blamed on the data.
    _check_unchanged(block)
    if len(data) != block.end_byte - block.start_byte:
        raise DataError(f"{path}: shorter than it was made; remove it and start the job again")
    for offset, line in enumerate(data.split(b"\n")):
        if line.strip():
            yield block.first_line + offset, line.rstrip(b"\r")


def _check_unchanged(block: Block) -> None:
    """Local files are read where they stand, and may change under the hand; objects are read from a copy."""
    if not is_s3(block.uri) and file_version(block.uri) != block.version:
        raise DataError(str(changed(block.uri)))

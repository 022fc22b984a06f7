"""Files cut into blocks of whole records, and their records with the right numbers, whatever wrote the files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from llmforge.dataset.record_files import RecordRange
from llmforge.dataset.sources import (
    Block,
    LineBlock,
    Record,
    RecordBlock,
    first_lines,
    plan_blocks,
    read_lines,
)
from llmforge.errors import DataError
from llmforge.storage.cache import file_version

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

NO_CACHE = Path("/none")


def blocks_of(
    *paths: Path, block_bytes: int, is_validation: bool = False, cache_folder: Path = NO_CACHE
) -> list[Block]:
    uris = [str(path) for path in paths]
    return plan_blocks(uris, is_validation=is_validation, block_bytes=block_bytes, cache_folder=cache_folder)


def lines_of(blocks: list[Block], cache_folder: Path = NO_CACHE) -> list[tuple[int, Record]]:
    return [line for block in blocks for line in read_lines(block, cache_folder)]


def line_blocks(blocks: list[Block]) -> list[LineBlock]:
    assert all(isinstance(block, LineBlock) for block in blocks)
    return [block for block in blocks if isinstance(block, LineBlock)]


LINES = st.lists(
    st.sampled_from([b"", b" ", b"\t", b"a", b'{"b": 1}', b"\xef\xbb\xbfc", b"d\re", b"f" * 30, b"\x00"]), min_size=1
)


@given(lines=LINES, line_end=st.sampled_from([b"\n", b"\r\n"]), ends=st.booleans(), block_bytes=st.integers(1, 80))
@settings(max_examples=100)
def test_any_block_size_gives_the_same_lines(
    lines: list[bytes], line_end: bytes, ends: bool, block_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = line_end.join(lines) + (line_end if ends else b"")
    if not data:
        return
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(data)
    blocks = line_blocks(blocks_of(path, block_bytes=block_bytes))
    assert lines_of([*blocks]) == [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    # The blocks are the file, cut at line ends, none longer than it must be.
    assert [block.start_byte for block in blocks] == [0, *(block.end_byte for block in blocks[:-1])]
    assert blocks[-1].end_byte == len(data)
    for block in blocks[:-1]:
        text = data[block.start_byte : block.end_byte]
        assert text.endswith(b"\n")
        assert len(text) >= block_bytes
    for block in blocks:
        text = data[block.start_byte : block.end_byte]
        assert len(text) < 2 * block_bytes + max(map(len, lines)) + 2
        assert block.first_line == data[: block.start_byte].count(b"\n") + 1


def test_several_files_in_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(b"1\n2\n")
    second.write_bytes(b"3")
    assert blocks_of(first, second, block_bytes=1 << 20, is_validation=True) == [
        LineBlock(str(first), 0, 4, 1, True, file_version(str(first))),
        LineBlock(str(second), 0, 1, 1, True, file_version(str(second))),
    ]
    assert lines_of(blocks_of(first, second, block_bytes=1)) == [(1, b"1"), (2, b"2"), (1, b"3")]


def test_a_line_longer_than_a_block_and_than_one_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"a" * (3 << 20) + b"\nb\n")
    blocks = blocks_of(path, block_bytes=100)
    assert [(number, len(line)) for number, line in lines_of([*blocks])] == [(1, 3 << 20), (2, 1)]
    assert [block.first_line for block in line_blocks(blocks)] == [1, 2]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.jsonl", tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError) as caught:
        blocks_of(missing, block_bytes=1)
    assert str(caught.value) == f"{missing}: no such file; `train_path` and `valid_path` name data files"
    with pytest.raises(DataError) as caught:
        blocks_of(tmp_path, block_bytes=1)
    assert str(caught.value) == f"{tmp_path}: no such file; `train_path` and `valid_path` name data files"
    with pytest.raises(DataError) as caught:
        blocks_of(empty, block_bytes=1)
    assert str(caught.value) == f"{empty}: the file is empty; expected records, such as one JSON object per line"


def test_the_first_lines_are_read_no_further_than_asked_for(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(b"one\r\n\n \ntwo")
    second.write_bytes(b"three\n")
    lines = first_lines([str(first), str(second), str(tmp_path / "missing.jsonl")], tmp_path)
    assert [next(lines) for _ in range(3)] == [
        (str(first), 1, b"one"),
        (str(first), 4, b"two"),
        (str(second), 1, b"three"),
    ]
    with pytest.raises(DataError, match=r"missing\.jsonl: no such file"):
        next(lines)


RECORDS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"question {number}\n\u00e9\U0001f600" + "x" * (number % 7)},
            {"role": "assistant", "content": f'"answer", {number}'} | ({"weight": 0.5} if number % 3 else {}),
        ]
    }
    | ({} if number % 2 else {"id": number})
    for number in range(40)
]
COLUMNS: list[dict[str, Any]] = [
    {"instruction": f"say {number}", "input": "" if number % 2 else "a\r\nb", "output": f'{number:03}, "NA"\t\u00e9'}
    for number in range(40)
]


def json_lines(records: Sequence[object]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def separated(records: Sequence[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
        stream.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))


def write_ipc_file(path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))
        file.write_table(table, max_chunksize=11)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue())


INDENTED = json.dumps(RECORDS, indent=1).replace("\n", "\r\n").encode()
KINDS: dict[str, tuple[Callable[[Path], object], list[dict[str, Any]]]] = {
    "a.jsonl": (lambda path: path.write_bytes(json_lines(RECORDS)), RECORDS),
    "b.ndjson": (lambda path: path.write_bytes(json_lines(RECORDS)[:-1]), RECORDS),
    "lines.json": (lambda path: path.write_bytes(json_lines(RECORDS)), RECORDS),
    "array.json": (lambda path: path.write_text(json.dumps(RECORDS)), RECORDS),
    "indented.json": (lambda path: path.write_bytes(b"\xef\xbb\xbf \n" + INDENTED), RECORDS),
    "a.csv": (lambda path: path.write_bytes(separated(COLUMNS, ",")), COLUMNS),
    "bom.csv": (lambda path: path.write_bytes(b"\xef\xbb\xbf" + separated(COLUMNS, ",")), COLUMNS),
    "a.tsv": (lambda path: path.write_bytes(separated(COLUMNS, "\t")), COLUMNS),
    "A.JSONL.GZ": (lambda path: path.write_bytes(gzip.compress(json_lines(RECORDS))), RECORDS),
    "two-members.jsonl.gz": (
        lambda path: path.write_bytes(gzip.compress(json_lines(RECORDS[:9])) + gzip.compress(json_lines(RECORDS[9:]))),
        RECORDS,
    ),
    "array.json.gz": (lambda path: path.write_bytes(gzip.compress(INDENTED)), RECORDS),
    "a.csv.zst": (lambda path: path.write_bytes(zstd(separated(COLUMNS, ","))), COLUMNS),
    "a.jsonl.zst": (lambda path: path.write_bytes(zstd(json_lines(RECORDS))), RECORDS),
    "a.parquet": (lambda path: parquet.write_table(pa.Table.from_pylist(RECORDS), path), RECORDS),
    "groups.parquet": (
        lambda path: parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=6, compression="zstd"),
        RECORDS,
    ),
    "stream.arrow": (write_stream, RECORDS),
    "file.arrow": (write_ipc_file, RECORDS),
    "a.feather": (
        lambda path: feather.write_feather(pa.Table.from_pylist(RECORDS), str(path), compression="lz4", chunksize=13),
        RECORDS,
    ),
}


def decoded(records: list[tuple[int, Record]]) -> list[tuple[int, Any]]:
    return [(number, json.loads(record) if isinstance(record, bytes) else record) for number, record in records]


@pytest.fixture(scope="module")
def kinds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name, (write, _) in KINDS.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("name", KINDS)
@given(block_bytes=st.integers(1, 12_000))
@settings(max_examples=4)
def test_any_kind_of_file_gives_its_records_for_any_block_size(name: str, block_bytes: int, kinds_folder: Path) -> None:
    path, cache_folder = kinds_folder / name, kinds_folder / "cache"
    expected = list(enumerate(KINDS[name][1], start=1))
    blocks = blocks_of(path, block_bytes=block_bytes, cache_folder=cache_folder)
    assert decoded(lines_of(blocks, cache_folder)) == expected
    first = [(number, record) for _, number, record in first_lines([str(path)], cache_folder)]
    assert decoded(first) == expected


def test_what_other_programs_write_is_cut_into_small_blocks(tmp_path: Path) -> None:
    texts = ["x" * 1000] * 3000
    for name, row_group_size in (("one.parquet", 3000), ("many.parquet", 10)):
        parquet.write_table(
            pa.table({"text": texts}), tmp_path / name, row_group_size=row_group_size, use_dictionary=False
        )
    with pa.ipc.new_file(tmp_path / "one.arrow", pa.schema([("text", pa.string())])) as file:
        file.write_table(pa.table({"text": texts}))
    for name, most in (("one.parquet", 190), ("many.parquet", 110), ("one.arrow", 100)):
        blocks = blocks_of(tmp_path / name, block_bytes=100_000)
        sizes = [block.records.num_records for block in blocks if isinstance(block, RecordBlock)]
        assert sum(sizes) == 3000 and max(sizes) <= most and min(sizes[:-1]) >= 90, name


def test_records_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["a", "b", "c", "d", None]}), path, row_group_size=2)
    (block,) = blocks_of(path, block_bytes=1 << 20, is_validation=True)
    assert block == RecordBlock(str(path), RecordRange(0, 0, 5), 1, True, file_version(str(path)))
    assert lines_of([block]) == [
        (1, {"text": "a"}),
        (2, {"text": "b"}),
        (3, {"text": "c"}),
        (4, {"text": "d"}),
        (5, {}),
    ]
    part = RecordBlock(str(path), RecordRange(1, 1, 1), 4, True, file_version(str(path)))
    assert lines_of([part]) == [(4, {"text": "d"})]


def rewritten(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "A.JSONL.GZ", "a.parquet", "file.arrow"])
@pytest.mark.parametrize("to_same_size", [True, False])
def test_a_file_that_changes_after_planning(name: str, to_same_size: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name][0](path)
    blocks = blocks_of(path, block_bytes=2000, cache_folder=tmp_path)
    assert len(blocks) > 1
    lines_of(blocks[:1], tmp_path)
    data = path.read_bytes()
    rewritten(path, data if to_same_size else data + b"\n")
    with pytest.raises(DataError) as caught:
        lines_of(blocks[1:], tmp_path)
    assert str(caught.value) == f"{path}: changed while it was read; start the job again once nobody writes it"
    path.unlink()
    with pytest.raises(DataError, match=r"no such file on .*, though it was there when the job began; every node"):
        lines_of(blocks[1:], tmp_path)


def test_a_file_that_changes_within_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(RECORDS), path)
    (block,) = blocks_of(path, block_bytes=1 << 20)
    records = read_lines(block, tmp_path)
    next(records)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="changed while it was read"):
        list(records)


def test_what_was_made_of_an_older_file_is_not_taken_for_that_of_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in (b"a\n1\n", b"a\n2\n"):
        rewritten(path, text)  # same size, same time of change
        assert lines_of(blocks_of(path, block_bytes=9, cache_folder=tmp_path), tmp_path) == [
            (1, b'{"a":"%c"}' % text[2])
        ]


def test_a_missing_piece_of_the_cache_is_made_again_and_a_short_one_noticed(tmp_path: Path) -> None:
    path, cache_folder = tmp_path / "a.csv", tmp_path / "cache"
    path.write_bytes(b"a\n1\n2\n")
    blocks = blocks_of(path, block_bytes=9, cache_folder=cache_folder)
    (made,) = cache_folder.rglob("a.csv.jsonl")
    shutil.rmtree(cache_folder)
    assert lines_of(blocks, cache_folder) == [(1, b'{"a":"1"}'), (2, b'{"a":"2"}')]
    made.write_bytes(b"{")
    with pytest.raises(DataError, match=r"a\.csv\.jsonl: shorter than it was made; remove it"):
        lines_of(blocks, cache_folder)


def damaged(data: bytes) -> dict[str, bytes]:
    return {"cut": data[:-9], "cut in half": data[: len(data) // 2]}


@pytest.mark.parametrize(
    "name",
    ["A.JSONL.GZ", "array.json.gz", "array.json", "a.csv.zst", "a.jsonl.zst", "a.parquet", "file.arrow", "a.feather"],
)
@pytest.mark.parametrize("damage", ["cut", "cut in half"])
def test_damaged_files(name: str, damage: str, kinds_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(damaged((kinds_folder / name).read_bytes())[damage])
    with pytest.raises(DataError) as caught:
        lines_of(blocks_of(path, block_bytes=1000, cache_folder=tmp_path), tmp_path)
    assert str(caught.value).startswith(f"{path}: not ")
    assert "cut short" in str(caught.value)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_pages_of_parquet_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(RECORDS), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    blocks = blocks_of(path, block_bytes=1000)
    with pytest.raises(DataError, match=r"a\.parquet: not sound parquet: "):
        lines_of(blocks)


def test_wrong_offsets_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    """What would be read from anywhere in memory, or end in another exception."""
    table = pa.table({"text": ["0123456789abcdef"] * 100})
    with pa.ipc.new_file(tmp_path / "offsets.arrow", table.schema) as file:
        file.write_table(table)
    data = bytearray((tmp_path / "offsets.arrow").read_bytes())
    offset = data.index((16 * 50).to_bytes(4, "little"))
    data[offset : offset + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "offsets.arrow").write_bytes(data)
    latin = pa.array([b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": latin}), tmp_path / "latin.parquet")
    for name, found in (("offsets.arrow", "not sound arrow: .*offset"), ("latin.parquet", "not sound parquet: .*UTF8")):
        with pytest.raises(DataError, match=f"{name}: {found}"):
            lines_of(blocks_of(tmp_path / name, block_bytes=1000))


@pytest.mark.slow
def test_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "zeros.jsonl"
    path.write_bytes(b"{}\n\n")
    os.truncate(path, (256 << 20) + 100_000)
    problem = (
        f"{path}:3: found no line end in 256 MiB, expected one JSON object per line; such a row would not fit into"
        " memory: write the file anew"
    )
    for read in (
        lambda: blocks_of(path, block_bytes=1000),
        lambda: list(first_lines([str(path)], tmp_path)),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value) == problem


TABLE = "a header and rows of values between commas"
JSON_LINES = "one JSON object per line"
JSON = "a JSON array of objects, or one JSON object per line"
MISMATCHES = [
    ("a.jsonl", b"\n [\n{}\n]", "a JSON array", JSON_LINES),
    ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip", JSON_LINES),
    ("a.jsonl.gz", b"{}\n", "text", "gzip"),
    ("a.jsonl.gz", zstd(b"{}\n"), "Zstandard", "gzip"),
    ("a.jsonl.zst", b"\x00\x01", "other bytes", "Zstandard"),
    ("a.jsonl.gz", gzip.compress(b"[1]", mtime=0), "a JSON array", JSON_LINES),
    ("a.json", b"question,answer\n", "no JSON", JSON),
    ("a.json", b'{\n "messages": []\n}', "one JSON object over several lines", JSON),
    ("a.json", b"PAR1", "Parquet", JSON),
    ("a.csv", b'{"a": 1}\n', "JSON objects", TABLE),
    ("a.csv", b"\xff\xfea\x00", "UTF-16 text", TABLE),
    ("a.parquet", b'{"a": 1}\n', "text", "Parquet"),
    ("a.arrow", b"PAR1", "Parquet", "Arrow"),
    ("a.feather", b"FEA1", "Feather 1", "Arrow"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "Parquet"),
]


@pytest.mark.parametrize(("name", "data", "found", "expected"), MISMATCHES)
def test_a_name_that_does_not_fit_the_content(
    name: str, data: bytes, found: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for read in (
        lambda: blocks_of(path, block_bytes=9, cache_folder=tmp_path),
        lambda: list(first_lines([str(path)], tmp_path)),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: found {found}, expected {expected} by its name; ")


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.csv", b"a,b\n", "no records in the file; take it out of the list, or write it anew"),
        ("a.json", b"[ ]", "no records in the file; take it out of the list, or write it anew"),
        (
            "a.jsonl.gz",
            gzip.compress(b"", mtime=0),
            "no records in the file; take it out of the list, or write it anew",
        ),
        ("a.csv", b"a,b,a\n1,2,3\n", "found the column 'a' twice in the header; give every column a name of its own"),
        ("a.csv", b"a,\n1,2\n", "found a column without a name in the header; give every column a name of its own"),
        ("a.txt", b"a", "not the name of a data file; allowed are .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        ("a.csv", b"a,b\n1,2\n3\n", "not sound CSV: CSV parse error: Row #3: Expected 2 columns, got 1: 3; cut short"),
        (
            "a.csv",
            b"a\n\xff\n",
            "not sound CSV: In CSV column #0: Row #2: CSV conversion error to string: invalid UTF8",
        ),
        ("a.json", b'[{"a": "x\ny"}]', "not a JSON array: JSON is malformed: invalid character (byte 9); cut short"),
    ],
)
def test_files_without_use(name: str, data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        blocks_of(path, block_bytes=9, cache_folder=tmp_path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_json_array_too_large_to_be_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_bytes(b"[")
    os.truncate(path, (2 << 30) + 1)
    with pytest.raises(DataError, match=r"large\.json: a JSON array of 2\.0 GiB, allowed are 2 GiB"):
        blocks_of(path, block_bytes=9, cache_folder=tmp_path)


def test_elements_of_a_json_array_stay_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 12345678901234567890123, "a": 1e400},\n"x\\ny", [1,\r\n2],\n\nnull, "\xff"]')
    lines = lines_of(blocks_of(path, block_bytes=9, cache_folder=tmp_path), tmp_path)
    assert lines == [
        (1, b'{"a": 12345678901234567890123, "a": 1e400}'),
        (2, b'"x\\ny"'),
        (3, b"[1,  2]"),
        (4, b"null"),
        (5, b'"\xff"'),
    ]


def read_all(path: Path, cache_folder: Path) -> tuple[int, int, int]:
    """Records of a file and their bytes, and by how many MiB the process became larger than ever."""
    before = peak_mib()
    blocks = blocks_of(path, block_bytes=8 << 20, cache_folder=cache_folder)
    sizes = [
        len(record) if isinstance(record, bytes) else sum(map(len, record.values()))
        for block in blocks
        for _, record in read_lines(block, cache_folder)
    ]
    return len(sizes), sum(sizes), peak_mib() - before


def peak_mib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) >> 10


@pytest.mark.slow
def test_large_rows_and_files_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """Rows of 50 MB, and files of 300 MB, packed or in one row group."""
    row = json.dumps({"text": "x" * (50 << 20)}).encode() + b"\n"
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        for _ in range(6):
            file.write(row)
    with (tmp_path / "a.csv").open("w") as text:
        text.write("a,b\n" + f"3,{'a' * 1000}\n" * 300_000)
    with (tmp_path / "large-row.csv").open("w") as text:
        text.write("a,b\n" + "1,2\n" * 1000 + '"' + "x" * (50 << 20) + '",2\n')
    table = pa.table({"text": ["x" * 1000, "y" * 1000] * 150_000})
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    expected = {
        "a.parquet": (300_000, 300_000 * 1000),
        "a.csv": (300_000, 300_000 * (len('{"a":"3","b":""}') + 1000)),
        "large-row.csv": (1001, 1001 * len('{"a":"1","b":"2"}') - 1 + (50 << 20)),
        "a.jsonl.zst": (6, 6 * (len(row) - 1)),
    }
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = {name: pool.apply(read_all, (tmp_path / name, tmp_path / "cache")) for name in expected}
    assert {name: result[:2] for name, result in results.items()} == expected
    growth = {name: result[2] for name, result in results.items()}
    limits = {"a.parquet": 150, "a.csv": 300, "large-row.csv": 600, "a.jsonl.zst": 300}
    assert all(growth[name] < limit for name, limit in limits.items()), growth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "array.json.gz", "a.csv", "a.parquet", "stream.arrow"])
def test_objects_of_s3(name: str, kinds_folder: Path, s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/data/{name}"
    s3_client.upload_file(str(kinds_folder / name), s3_bucket, f"data/{name}")
    blocks = plan_blocks([uri], is_validation=False, block_bytes=2000, cache_folder=tmp_path / "one")
    expected = list(enumerate(KINDS[name][1], start=1))
    assert decoded(lines_of(blocks, tmp_path / "another")) == expected
    assert {block.uri for block in blocks} == {uri}
    s3_client.put_object(Bucket=s3_bucket, Key=f"data/{name}", Body=b"other")
    assert decoded(lines_of(blocks, tmp_path / "one")) == expected  # the version that was planned is at hand
    with pytest.raises(DataError) as caught:
        lines_of(blocks, tmp_path / "third")
    assert str(caught.value) == f"{uri}: changed while it was read; start the job again once nobody writes it"

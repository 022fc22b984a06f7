"""Damaged files, unreliable servers and full disks: each is named with its place, and nothing half-written stays."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from pyarrow import parquet

from llmforge.config.data import DatasetConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.dataset.pipeline import prepare
from llmforge.dataset.prepared import PreparedDataset
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import plan_blocks, read_lines
from llmforge.dataset.tokenize import TokenizerText
from llmforge.errors import DataError, StorageError
from llmforge.models.folder import read_tokenizer_json
from llmforge.prompt.document import texts_of
from llmforge.storage.base import open_storage
from llmforge.storage.cache import fetch_to_cache
from tests.chaos_proxy import ChaosProxy, Fault
from tests.file_limit import file_size_limit
from tests.ray_fixtures import PROMPT_FORMAT, MakeJob
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

GOOD = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}'
CUT = "not JSON: Input data was truncated"
NULLS = "it has NUL bytes, as a crash leaves them behind: write the file anew"


def reasons(path: Path, block_bytes: int = 100) -> dict[int, str]:
    """The numbers of the rows of a file that are refused, with the reasons; of any block size the same."""
    found: dict[int, str] = {}
    numbers = []
    cache_folder = path.parent / "cache"
    blocks = plan_blocks([str(path)], is_validation=False, block_bytes=block_bytes, cache_folder=cache_folder)
    for block in blocks:
        for number, record in read_lines(block, cache_folder):
            numbers.append(number)
            try:
                parse_row(record, PromptFormat.model_validate(PROMPT_FORMAT), DatasetConfig())
            except DataError as error:
                found[number] = str(error)
    assert numbers == sorted(set(numbers))
    return found


def test_a_row_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{GOOD[:40]}\n{GOOD}\n{GOOD[:60]}")
    assert reasons(path) == {2: CUT, 4: CUT}


def test_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    # As by `copy a.jsonl+b.jsonl`: the mark of the second file stands within.
    path.write_bytes(f"\ufeff{GOOD}\r\n\r\n\ufeff{GOOD}\r\n  \r\n{GOOD[:-1]}\r\n".encode())
    assert reasons(path) == {5: CUT}
    path.write_text(f"{GOOD}\r{GOOD}\r")
    assert reasons(path) == {1: f"not JSON: JSON is malformed: trailing characters (byte {len(GOOD) + 2})"}


def test_null_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [GOOD.replace("2 +", "2\0+"), GOOD.replace("2 +", "2\\u0000+"), "\0" * 300, f"\0\0{GOOD}", GOOD, f"{GOOD}\0"]
    path.write_text("\n".join(rows))
    assert reasons(path) == {
        1: f"not JSON: JSON is malformed: invalid character (byte {GOOD.index('2 +') + 1}); {NULLS}",
        3: f"not JSON: JSON is malformed: invalid character (byte 0); {NULLS}",
        4: f"not JSON: JSON is malformed: invalid character (byte 0); {NULLS}",
        6: f"not JSON: JSON is malformed: trailing characters (byte {len(GOOD) + 1}); {NULLS}",
    }


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ('"text"', "`messages` is a string; expected a list of {role, content} objects"),
        ('{"role": "user"}', "`messages` is an object; expected a list of {role, content} objects"),
        ("[1]", "message 1 is a number; expected an object with `role` and `content`"),
        ("[[]]", "message 1 is a list; expected an object with `role` and `content`"),
        ("[null]", "message 1 is nothing (null); expected an object with `role` and `content`"),
        ('[{"role": ["user"], "content": ""}]', "message 1 has role ['user']; allowed are system, user, assistant"),
        ('[{"role": "user", "content": {}}]', "message 1 (user) has an object as content; expected a string"),
        ('[{"role": "user", "content": true}]', "message 1 (user) has a boolean as content; expected a string"),
        ("[" * 5000, "not JSON of a row: too many brackets inside each other"),
    ],
)
def test_nested_wrong_types(messages: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{GOOD}\n{{"messages": {messages}}}\n{GOOD}\n')
    assert reasons(path) == {2: reason}


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"x", "bytes"), (datetime(2026, 11, 21), "datetime"), (1.5, "a number"), (["x"], "a list")],
    ids=["bytes", "time", "number", "list"],
)
def test_wrong_types_of_other_kinds_of_files(content: object, found: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    parquet.write_table(pa.Table.from_pylist([{"messages": messages}, {"messages": None}]), path)
    (first, second) = reasons(path).values()
    if found == "a list":
        assert first.startswith("message 1 has a content with a part of type None; allowed are parts ")
    else:
        assert first == f"message 1 (user) has {found} as content; expected a string"
    assert second == "no `messages` column (found: no column)"


def test_one_bad_row_among_many(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [GOOD] * 20_000
    lines[12_345] = GOOD[1:]
    path.write_text("\n".join(lines))
    assert list(reasons(path, block_bytes=64 << 10)) == [12_346]


def test_a_row_of_50_mb(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "é" * (25 << 20)
    path.write_text(f"{GOOD}\n{GOOD.replace('2 + 2?', text)}\n{GOOD}\n", encoding="utf-8")
    blocks = plan_blocks([str(path)], is_validation=False, block_bytes=64 << 10, cache_folder=tmp_path)
    assert len(blocks) == 2
    rows = [
        parse_row(record, PromptFormat.model_validate(PROMPT_FORMAT))
        for block in blocks
        for _, record in read_lines(block, tmp_path)
    ]
    assert [texts_of(row)[0] == text for row in rows] == [False, True, False]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json", "rows.csv"])
def test_a_disk_that_is_full_while_a_file_is_unpacked(name: str, tmp_path: Path) -> None:
    contents = {
        "rows.jsonl.gz": gzip.compress(f"{GOOD}\n".encode() * 2000),
        "rows.json": json.dumps([json.loads(GOOD)] * 2000).encode(),
        "rows.csv": b"a,b\n" + b"some text,more of it\n" * 10_000,
    }
    path, cache_folder = tmp_path / name, tmp_path / "cache"
    path.write_bytes(contents[name])
    with file_size_limit(100_000), pytest.raises(StorageError) as caught:
        plan_blocks([str(path)], is_validation=False, block_bytes=1000, cache_folder=cache_folder)
    message = str(caught.value)
    assert message.startswith(str(cache_folder)) and ": cannot write the file: File too large. " in message
    assert message.endswith("see `ulimit -f` and the file system, or choose another folder.")
    assert [name for name in files_in(cache_folder) if not name.endswith(".lock")] == []
    assert len(plan_blocks([str(path)], is_validation=False, block_bytes=1000, cache_folder=cache_folder)) > 100


@pytest.mark.slow
def test_a_disk_that_is_full_while_an_object_is_fetched(s3_client: S3Client, s3_bucket: str, tmp_path: Path) -> None:
    s3_client.put_object(Bucket=s3_bucket, Key="rows.jsonl", Body=f"{GOOD}\n".encode() * 200_000)
    uri = f"s3://{s3_bucket}/rows.jsonl"
    with file_size_limit(1 << 20), pytest.raises(StorageError) as caught:
        fetch_to_cache(uri, tmp_path)
    assert "cannot download on this machine's side: File too large" in str(caught.value)
    assert [name for name in files_in(tmp_path) if not name.endswith(".lock")] == []
    assert fetch_to_cache(uri, tmp_path).stat().st_size == 200_000 * (len(GOOD) + 1)


Prepare = Callable[..., PreparedDataset]


@pytest.fixture
def prepare_job(shared_ray: None, small_model: Path, make_job: MakeJob, tmp_path: Path) -> Prepare:
    """`prepare_job(key=value, ...)`: the result of the data stage for a job with these keys."""

    def run(**keys: object) -> PreparedDataset:
        facts = JobFacts(has_gpu=False, started_at=datetime(2026, 11, 21), model_context_length=512)
        job = resolve_job(make_job(model_id=str(small_model), **keys), facts)
        storage = open_storage(job.output_dir)
        tokenizer = TokenizerText(read_tokenizer_json(small_model), None)
        return prepare(job, tokenizer, storage, tmp_path / "cache", model_context_length=512)

    return run


def write_rows(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.slow
def test_one_bad_row_in_100_000(prepare_job: Prepare, tmp_path: Path) -> None:
    lines = [GOOD] * 100_000
    lines[77_776] = GOOD[1:]
    path = write_rows(tmp_path / "train.jsonl", lines)
    with pytest.raises(DataError) as caught:
        prepare_job()
    assert str(caught.value).splitlines() == [
        "1 of 100000 rows are invalid:",
        f"  {path}:77777: not JSON: JSON is malformed: trailing characters (byte 11)",
        "mend them, or leave them out with dataset.on_invalid=drop",
    ]
    stats = prepare_job(dataset={"on_invalid": "drop"}).stats
    assert (stats.rows_in, stats.rows_used, stats.dropped) == (100_000, 99_999, {"invalid": 1})


@pytest.mark.slow
def test_a_row_of_50_mb_among_others(prepare_job: Prepare, tmp_path: Path) -> None:
    """Most of it in a column that is not read."""
    large = GOOD.replace("{", f'{{"page": "{"x" * (50 << 20)}", ', 1)
    long = GOOD.replace("2 + 2?", "one and one. " * 40_000)
    path = write_rows(tmp_path / "train.jsonl", [GOOD, large, long, GOOD])
    stats = prepare_job().stats
    assert (stats.rows_in, stats.rows_used, stats.dropped) == (4, 3, {"longer than context_length": 1})
    assert path.stat().st_size > 50_000_000


@pytest.mark.slow
def test_a_disk_that_is_full_while_the_dataset_is_prepared(
    prepare_job: Prepare, real_rows: list[str], tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", real_rows * 20)
    with file_size_limit(1 << 20), pytest.raises(StorageError) as caught:
        prepare_job()
    message = str(caught.value)
    assert message.startswith(f"{gettempdir()}: cannot use the folder for temporary files (TMPDIR): ")
    assert "File too large" in message and message.endswith("or choose another folder.")
    assert files_in(tmp_path / "runs") == []
    assert prepare_job().stats.rows_in == 20 * len(real_rows)


@pytest.fixture
def proxy_on_nodes(
    s3_on_nodes: S3Server, node_aws_config: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ChaosProxy]:
    """Between the server and this process as well as the nodes of `shared_ray`; `s3_client` goes past it."""
    with ChaosProxy(s3_on_nodes.port).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        node_aws_config.write_text(node_aws_config.read_text().replace(s3_on_nodes.url, proxy.url))
        yield proxy


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [Fault("reset", after_bytes=30_000, times=3), Fault("refuse", times=3), Fault(bytes_per_second=200_000)],
    ids=["reset", "refused", "slow"],
)
def test_a_disturbed_server(
    fault: Fault,
    proxy_on_nodes: ChaosProxy,
    prepare_job: Prepare,
    real_rows: list[str],
    s3_client: S3Client,
    s3_bucket: str,
    tmp_path: Path,
) -> None:
    path = write_rows(tmp_path / "train.jsonl", real_rows)
    s3_client.upload_file(str(path), s3_bucket, "train.jsonl")
    proxy_on_nodes.set(fault)
    stats = prepare_job(train_path=f"s3://{s3_bucket}/train.jsonl").stats
    assert proxy_on_nodes.num_faults == (fault.times or 0)
    assert stats == prepare_job().stats

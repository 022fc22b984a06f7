"""What the sources of a job name: files, folders, globs, here and in S3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.dataset.file_names import FileKind, find_kind, kind_of
from llmforge.dataset.files import expand_uris
from llmforge.errors import DataError, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

ALLOWED = (
    "allowed are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather, and the text files among them with .gz"
    " or .zst"
)
CHECK = "check the path, and that it is visible from this machine"
BELOW = "name files in folders below it by a glob, such as empty/**/*.jsonl"
FILES = [
    ".hidden.jsonl",
    "_SUCCESS",
    "_part.jsonl",
    "b.jsonl",
    "a.jsonl.gz",
    "part-10.parquet",
    "part-2.parquet",
    "README.md",
    "dataset_info.json",
    "deep/er/c.jsonl",
    "deep/d.jsonl",
    "deep/.cache/e.jsonl",
    "[odd].jsonl",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "folder.jsonl").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


GLOBS = {
    "data/*.jsonl": ["data/[odd].jsonl", "data/_part.jsonl", "data/b.jsonl"],
    "data/part-*.parquet": ["data/part-10.parquet", "data/part-2.parquet"],
    "data/part-?.parquet": ["data/part-2.parquet"],
    "data/[ab].jsonl*": ["data/a.jsonl.gz", "data/b.jsonl"],
    "data/**/[cd].jsonl": ["data/deep/d.jsonl", "data/deep/er/c.jsonl"],
    "data/**/*.jsonl": [
        "data/[odd].jsonl",
        "data/_part.jsonl",
        "data/b.jsonl",
        "data/deep/d.jsonl",
        "data/deep/er/c.jsonl",
    ],
    "*/deep/*.jsonl": ["data/deep/d.jsonl"],
    "data/deep/**": ["data/deep/d.jsonl", "data/deep/er/c.jsonl"],
    "data/.*.jsonl": ["data/.hidden.jsonl"],
}
IN_FOLDER = ["[odd].jsonl", "a.jsonl.gz", "b.jsonl", "part-10.parquet", "part-2.parquet"]


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs(pattern: str, folder: Path) -> None:
    assert expand_uris([pattern]) == GLOBS[pattern]
    assert expand_uris([str(folder / pattern)]) == [str(folder / name) for name in GLOBS[pattern]]
    assert expand_uris([f"file://{folder}/{pattern}"]) == [str(folder / name) for name in GLOBS[pattern]]
    assert expand_uris([f"~/{pattern}"]) == [str(folder / name) for name in GLOBS[pattern]]


def test_folders(folder: Path) -> None:
    for uri in ("data", "data/"):
        assert expand_uris([uri]) == [f"data/{name}" for name in IN_FOLDER]
    assert expand_uris([f"file://{folder}/data"]) == [str(folder / "data" / name) for name in IN_FOLDER]


def test_single_files_stay_as_they_are_named(folder: Path) -> None:
    uris = ["data/b.jsonl", "no.jsonl", "data/[odd].jsonl", "s3://bucket/data/a.jsonl", f"file://{folder}/data/b.jsonl"]
    assert expand_uris(uris) == uris
    assert expand_uris(["data/part-*.parquet", "data/b.jsonl", "data/b.jsonl"]) == [
        "data/part-10.parquet",
        "data/part-2.parquet",
        "data/b.jsonl",
        "data/b.jsonl",
    ]


def test_nothing_found(folder: Path) -> None:
    problems = {
        "data/*.csv": f"no file matches (looked for in {folder}); {CHECK}",
        f"{folder}/*.csv": f"no file matches; {CHECK}",
        "data/*.md": f"matches data/README.md, which is not a data file; {ALLOWED}; narrow the glob",
        "empty": f"no data file in this folder (found no file); {ALLOWED}; {BELOW}",
    }
    for uri, problem in problems.items():
        with pytest.raises(DataError) as caught:
            expand_uris([uri])
        assert str(caught.value) == f"{uri}: {problem}"
    for number in range(7):
        Path(f"empty/{number}.txt").touch()
    with pytest.raises(DataError, match=r"found 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt, \.\.\.\)"):
        expand_uris(["empty"])
    with pytest.raises(StorageError, match="no storage for gs: addresses"):
        expand_uris(["gs://bucket/*.jsonl"])


def test_kinds_by_name() -> None:
    assert find_kind("s3://b/a.JSONL") == FileKind("jsonl")
    assert find_kind("a.ndjson.gz") == FileKind("jsonl", "gzip")
    assert find_kind("a.b/c.csv.zst") == FileKind("csv", "zstd")
    assert kind_of("a.feather") == FileKind("arrow")
    for name in ("a", "a.txt", "a.parquet.gz", ".jsonl", "jsonl", "a.jsonl.bz2", "a.gz"):
        assert find_kind(name) is None, name
    with pytest.raises(DataError) as caught:
        kind_of("s3://b/a.txt")
    assert str(caught.value) == f"s3://b/a.txt: not the name of a data file; {ALLOWED}"


@pytest.mark.slow
def test_globs_and_folders_of_s3(folder: Path, s3_bucket: str, s3_client: S3Client) -> None:
    for name in FILES:
        s3_client.put_object(Bucket=s3_bucket, Key=f"data/{name}", Body=b"")
    s3_client.put_object(Bucket=s3_bucket, Key="data/", Body=b"")
    root = f"s3://{s3_bucket}"
    for pattern, names in GLOBS.items():
        assert (
            expand_uris([f"{root}/{pattern}"])
            == [f"{root}/{name}" for name in names]
            == [f"{root}/{name}" for name in expand_uris([pattern])]
        )
    for uri in (f"{root}/data", f"{root}/data/"):
        assert expand_uris([uri]) == [f"{root}/data/{name}" for name in IN_FOLDER]
    with pytest.raises(DataError, match=f"{root}/none: no data file in this folder"):
        expand_uris([f"{root}/none"])
    with pytest.raises(DataError, match=r"no\*\.jsonl: no file matches; check the path"):
        expand_uris([f"{root}/no*.jsonl"])
    with pytest.raises(StorageError, match="no-such-bucket-here"):
        expand_uris(["s3://no-such-bucket-here/*.jsonl"])

"""S3 against a real server: whole objects, large and small, and every refusal in words."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.checkpoint.names import checkpoint_name
from llmforge.checkpoint.store import CheckpointStore
from llmforge.errors import CheckpointError, StorageError
from llmforge.storage.base import NotFoundError, check_writable, open_storage, read_bytes, write_bytes
from llmforge.storage.cache import fetch_folder_to_cache, fetch_to_cache, fingerprint
from llmforge.storage.manifest import (
    commit_folder,
    fetch_folder,
    read_manifest,
    remove_folder,
)
from llmforge.storage.s3 import S3Storage
from llmforge.storage.types import DamagedError
from tests.s3_server import LISTING_PAGE, S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow


def test_round_trip_and_listing(s3_bucket: str, tmp_path: Path) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs/one/")
    assert storage.root_uri == f"s3://{s3_bucket}/runs/one"
    assert storage.list() == []
    for key, data in (("a/b/one", b"1"), ("a/two ü#?%41", b"22"), ("ab", b"")):
        write_bytes(storage, key, data)
    write_bytes(open_storage(f"s3://{s3_bucket}/runs"), "one-more", b"another folder")
    assert [(file.key, file.size_bytes) for file in storage.list()] == [("a/b/one", 1), ("a/two ü#?%41", 2), ("ab", 0)]
    assert [file.key for file in storage.list("a")] == ["a/b/one", "a/two ü#?%41"]
    assert storage.list()[0].modified_at.utcoffset() is not None
    assert read_bytes(storage, "a/two ü#?%41") == b"22"
    assert read_bytes(storage, "ab") == b""
    write_bytes(storage, "ab", b"new")
    assert read_bytes(storage, "ab") == b"new"
    storage.delete("ab")
    storage.delete("ab")
    with pytest.raises(NotFoundError, match=f"s3://{s3_bucket}/runs/one/ab: no such object at http://127"):
        storage.download("ab", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
    assert len(open_storage(f"s3://{s3_bucket}").list()) == 3


def test_a_listing_of_many_pages(s3_bucket: str, s3_client: S3Client) -> None:
    for i in range(LISTING_PAGE + 5):
        s3_client.put_object(Bucket=s3_bucket, Key=f"many/{i:04d}", Body=b"")
    s3_client.put_object(Bucket=s3_bucket, Key="many/folder/", Body=b"")
    assert [file.key for file in open_storage(f"s3://{s3_bucket}").list("many")] == [
        f"many/{i:04d}" for i in range(LISTING_PAGE + 5)
    ]


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_files_in_several_parts(
    s3_bucket: str, s3_client: S3Client, tmp_path: Path, checksums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", checksums)
    content = os.urandom(1 << 20) * 70
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights").write_bytes(content)
    storage = open_storage(f"s3://{s3_bucket}")
    manifest = commit_folder(storage, "x", tmp_path / "in", {})
    assert s3_client.head_object(Bucket=s3_bucket, Key="x/weights", PartNumber=1)["ETag"].endswith('-3"')
    fetch_folder(storage, "x", manifest, tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_bytes() == content
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]


def test_committed_folders(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    storage = open_storage(f"s3://{s3_bucket}/run")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"first")
    (tmp_path / "in" / "b").write_bytes(b"second")
    assert read_manifest(storage, "x") is None
    manifest = commit_folder(storage, "x", tmp_path / "in", {"rows": 1})
    assert read_manifest(storage, "x") == manifest
    s3_client.put_object(Bucket=s3_bucket, Key="run/x/a", Body=b"fIrst")
    s3_client.delete_object(Bucket=s3_bucket, Key="run/x/b")
    with pytest.raises(DamagedError, match=r"(?s)2 of 2 files.*a: SHA-256.*b: missing"):
        fetch_folder(storage, "x", manifest, tmp_path / "out")
    remove_folder(storage, "x")
    assert storage.list() == []


def test_checkpoints(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    store = CheckpointStore(pickle.loads(pickle.dumps(open_storage(f"s3://{s3_bucket}/runs/r"))))
    for step in (1, 2, 3):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "w").write_bytes(b"%d" % step)
        name = checkpoint_name(step, "a")
        store.upload_rank(name, folder, 0, 1, {"eval_loss": float(step)})
        assert len(store.list()) == step - 1
        store.commit(name)
    store.point("best", checkpoint_name(1, "a"))
    assert store.retain(1) == [checkpoint_name(2, "a")]
    assert [info.step for info in store.list()] == [1, 3]
    assert store.resolve("best").step == 1
    store.fetch(store.resolve("latest"), tmp_path / "out")
    assert (tmp_path / "out" / "w").read_bytes() == b"3"
    s3_client.put_object(Bucket=s3_bucket, Key=f"runs/r/checkpoints/{checkpoint_name(3, 'a')}/w", Body=b"4")
    with pytest.raises(CheckpointError, match=r"damaged checkpoint: .*1 of 1 files"):
        store.fetch(store.resolve("latest"), tmp_path / "out2")


def test_check_writable_leaves_nothing(s3_bucket: str) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs")
    check_writable(storage)
    assert storage.list() == []


def test_a_missing_bucket_is_not_a_missing_file(s3_environment: S3Server, tmp_path: Path) -> None:
    storage = open_storage("s3://no-such-bucket/runs")
    for action in (
        lambda: check_writable(storage),
        lambda: storage.download("a", tmp_path / "a"),
        lambda: storage.list(),
        lambda: fingerprint("s3://no-such-bucket/a"),
    ):
        with pytest.raises(StorageError, match=r"the bucket does not exist .NoSuchBucket.*Create it") as caught:
            action()
        assert not isinstance(caught.value, NotFoundError)
        assert "s3://no-such-bucket" in str(caught.value) and s3_environment.url in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ACCESS_KEY_ID", "test:nobody", "wrong credentials"),
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "wrong credentials"),
    ],
)
def test_wrong_credentials(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    storage = open_storage(f"s3://{s3_bucket}/runs")
    for action in (
        lambda: check_writable(storage),
        lambda: storage.download("a", tmp_path / "a"),
        lambda: storage.list(),
    ):
        with pytest.raises(StorageError, match=words) as caught:
            action()
        assert "Check AWS_" in str(caught.value)
        assert "testsecretkey" not in str(caught.value) and "not-the-secret" not in str(caught.value)


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"cannot list: no credentials were found.*Set AWS_ACCESS_KEY_ID"):
        open_storage(f"s3://{s3_bucket}").list()


def test_an_endpoint_that_does_not_answer(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot be reached .*http://127\.0\.0\.1:9\. Check AWS_ENDPOINT_URL"):
        open_storage("s3://bucket").list()


def test_an_endpoint_that_is_none(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    with pytest.raises(StorageError, match="Check AWS_ENDPOINT_URL, such as http://host:9000"):
        open_storage("s3://bucket").list()


def test_a_name_that_no_bucket_can_have(s3_environment: S3Server) -> None:
    with pytest.raises(StorageError, match="Correct it"):
        open_storage("s3://no bucket/x").list()


def test_a_pickle_holds_no_credential(s3_bucket: str) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs")
    write_bytes(storage, "a", b"1")
    data = pickle.dumps(storage)
    assert b"tester" not in data and b"testsecretkey" not in data
    assert read_bytes(pickle.loads(data), "a") == b"1"


def test_fingerprint_and_cache_follow_the_object(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/data/rows.jsonl"
    with pytest.raises(NotFoundError, match=uri):
        fetch_to_cache(uri, tmp_path)
    s3_client.put_object(Bucket=s3_bucket, Key="data/rows.jsonl", Body=b"old")
    old = fingerprint(uri)
    assert (old.uri, old.size_bytes) == (uri, 3) and old.checksum.startswith("etag:")
    first = fetch_to_cache(uri, tmp_path)
    assert (first.name, first.read_bytes()) == ("rows.jsonl", b"old")
    inode = first.stat().st_ino
    assert fetch_to_cache(uri, tmp_path) == first and first.stat().st_ino == inode
    s3_client.put_object(Bucket=s3_bucket, Key="data/rows.jsonl", Body=b"new")
    assert fingerprint(uri) != old
    second = fetch_to_cache(uri, tmp_path)
    assert (first.read_bytes(), second.read_bytes()) == (b"old", b"new")
    second.write_bytes(b"cut short by something else"[:1])
    assert fetch_to_cache(uri, tmp_path).read_bytes() == b"new"


def test_a_folder_comes_into_the_cache_once_a_version(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/models/one"
    with pytest.raises(NotFoundError, match=rf"{uri}: holds none of \*.json, \*.safetensors"):
        fetch_folder_to_cache(uri, tmp_path, ["*.json", "*.safetensors"])
    bodies = {"config.json": b"{}", "model.safetensors": b"old", "notes.md": b"-", "optimizer/rank.safetensors": b"-"}
    for name, body in bodies.items():
        s3_client.put_object(Bucket=s3_bucket, Key=f"models/one/{name}", Body=body)
    first = fetch_folder_to_cache(uri, tmp_path, ["*.json", "*.safetensors"])
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"old",
    }
    inode = (first / "model.safetensors").stat().st_ino
    (first / "config.json").unlink()
    assert fetch_folder_to_cache(uri, tmp_path, ["*.json", "*.safetensors"]) == first
    assert (first / "config.json").is_file() and (first / "model.safetensors").stat().st_ino == inode
    s3_client.put_object(Bucket=s3_bucket, Key="models/one/model.safetensors", Body=b"new")
    second = fetch_folder_to_cache(uri, tmp_path, ["*.json", "*.safetensors"])
    assert [(folder / "model.safetensors").read_bytes() for folder in (first, second)] == [b"old", b"new"]


def test_a_folder_with_a_manifest_is_verified(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    """One byte has flipped on the server, which says nothing of it."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.safetensors").write_bytes(b"right")
    uri = f"s3://{s3_bucket}/exports/one"
    commit_folder(open_storage(uri), "", tmp_path / "made", {})
    folder = fetch_folder_to_cache(uri, tmp_path / "cache", ["*.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == b"right"
    s3_client.put_object(Bucket=s3_bucket, Key="exports/one/model.safetensors", Body=b"wrong")
    with pytest.raises(DamagedError, match=r"model\.safetensors: SHA-256"):
        fetch_folder_to_cache(uri, tmp_path / "cache", ["*.safetensors"])


def fetch_in_process(uri: str, folder: Path) -> tuple[str, int]:
    """Path and inode of the cached file."""
    path = fetch_to_cache(uri, folder)
    return str(path), path.stat().st_ino


def test_two_processes_bring_a_file_once(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    s3_client.put_object(Bucket=s3_bucket, Key="rows", Body=b"x" * 20_000_000)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(fetch_in_process, [(f"s3://{s3_bucket}/rows", tmp_path)] * 2)
    assert results[0] == results[1]
    assert Path(results[0][0]).stat().st_size == 20_000_000


def test_a_missing_source_is_named(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone: cannot read the file"):
        S3Storage(s3_bucket).upload(tmp_path / "gone", "a")

"""Uploads to a real server behind a proxy that disturbs them: cut short and gone on with, conditional, and patient."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.errors import StorageError
from llmforge.storage.base import open_storage, read_bytes, write_bytes
from llmforge.storage.patience import PatientStorage
from llmforge.storage.s3 import S3Storage
from llmforge.storage.types import ExistsError, PassingError
from tests.chaos_proxy import ChaosProxy, Fault
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

pytestmark = pytest.mark.slow

PART_BYTES = 32 << 20
FILE_BYTES = 100 << 20
NUM_PARTS = 4
MESSAGES = "llmforge.storage.patience"


@pytest.fixture
def proxy(s3_environment: S3Server, s3_client: S3Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosProxy]:
    """Between this process and the server; `s3_client`, which is there before, goes past it."""
    with ChaosProxy(s3_environment.port).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts, none like another, with few bytes that are not zero."""
    file = tmp_path_factory.mktemp("files") / "large"
    with file.open("wb") as target:
        for start in range(0, FILE_BYTES, PART_BYTES // 2):
            target.seek(start)
            target.write(os.urandom(1000))
        target.truncate(FILE_BYTES)
    return file


def parts_there(client: S3Client, bucket: str) -> dict[int, datetime]:
    """Parts of the only upload that was begun and not ended, and when each was sent; none where there is no upload."""
    uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    if not uploads:
        return {}
    (upload,) = uploads
    found = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return {part["PartNumber"]: part["LastModified"] for part in found.get("Parts", [])}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for a minute"
        time.sleep(0.02)


def is_stored(client: S3Client, bucket: str, key: str, file: Path) -> bool:
    """Whether the object has the bytes of the file, and nothing unfinished is left beside it."""
    stored = hashlib.sha256()
    with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
        while data := body.read(1 << 20):
            stored.update(data)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    return stored.digest() == hashlib.sha256(file.read_bytes()).digest()


@contextmanager
def in_background(action: Callable[[], object]) -> Iterator[None]:
    """Run it beside the block, and raise what it raised."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        yield
        future.result()


def test_an_upload_that_was_cut_goes_on(
    proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, large_file: Path
) -> None:
    storage = open_storage(f"s3://{s3_bucket}")
    proxy.set(Fault("reset", only="partNumber=3", of="requests", after_bytes=10 << 20))
    with pytest.raises(PassingError, match=rf"^s3://{s3_bucket}/a/b: cannot upload: the connection ") as caught:
        storage.upload(large_file, "a/b")
    assert caught.value.made_progress
    there = parts_there(s3_client, s3_bucket)
    assert list(there) == [1, 2, 4]
    assert storage.list() == []
    proxy.set(Fault("error", only="POST "))
    with pytest.raises(PassingError, match=r"overloaded or out of order .SlowDown.") as again:
        storage.upload(large_file, "a/b")
    assert again.value.made_progress
    there_now = parts_there(s3_client, s3_bucket)
    assert list(there_now) == [1, 2, 3, 4]
    assert there_now | there == there_now
    proxy.set(Fault("reset", only="partNumber="))
    storage.upload(large_file, "a/b")
    assert proxy.num_faults == 0
    assert is_stored(s3_client, s3_bucket, "a/b", large_file)


def upload(uri: str, source: Path) -> None:
    """In a process of its own."""
    open_storage(uri).upload(source, "a/b")


def test_an_upload_whose_process_was_killed_goes_on(
    proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, large_file: Path
) -> None:
    uri = f"s3://{s3_bucket}"
    proxy.set(Fault("stall", only="partNumber=1", of="requests", after_bytes=10 << 20))
    process = multiprocessing.get_context("spawn").Process(target=upload, args=(uri, large_file))
    process.start()
    wait_until(lambda: list(parts_there(s3_client, s3_bucket)) == [2, 3, 4])
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    proxy.set(Fault("reset", only="partNumber=3"))
    upload(uri, large_file)
    assert proxy.num_faults == 0
    assert is_stored(s3_client, s3_bucket, "a/b", large_file)


def test_parts_of_another_file_are_sent_again(
    proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, large_file: Path
) -> None:
    with large_file.open("rb") as file:
        first, second, third = (file.read(PART_BYTES) for _ in range(3))
    upload_id = s3_client.create_multipart_upload(Bucket=s3_bucket, Key="a")["UploadId"]
    for number, body in ((1, b"x" + first[1:]), (2, second), (3, third[:-1])):
        s3_client.upload_part(Bucket=s3_bucket, Key="a", UploadId=upload_id, PartNumber=number, Body=body)
    s3_client.create_multipart_upload(Bucket=s3_bucket, Key="ab")
    proxy.set(Fault("reset", only="partNumber=2"))
    S3Storage(s3_bucket).upload(large_file, "a")
    assert proxy.num_faults == 0
    S3Storage(s3_bucket).discard_unfinished()
    assert is_stored(s3_client, s3_bucket, "a", large_file)


def test_an_upload_that_another_one_overtakes(
    proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, large_file: Path
) -> None:
    """Once it is done, the slower one sends nothing more; the object was made of the same parts."""
    storage = S3Storage(s3_bucket)
    proxy.set(Fault("stall", only="partNumber=4", of="requests"))
    with in_background(lambda: storage.upload(large_file, "a")):
        wait_until(lambda: list(parts_there(s3_client, s3_bucket)) == [1, 2, 3])
        storage.discard_unfinished()
        copy = s3_client.create_multipart_upload(Bucket=s3_bucket, Key="a")["UploadId"]
        parts: list[CompletedPartTypeDef] = []
        with large_file.open("rb") as file:
            for number in range(1, NUM_PARTS + 1):
                body = file.read(PART_BYTES)
                part = s3_client.upload_part(Bucket=s3_bucket, Key="a", UploadId=copy, PartNumber=number, Body=body)
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
        s3_client.complete_multipart_upload(Bucket=s3_bucket, Key="a", UploadId=copy, MultipartUpload={"Parts": parts})
        proxy.set(Fault("reset", only="partNumber=1"))
    assert proxy.num_faults == 0
    assert is_stored(s3_client, s3_bucket, "a", large_file)


def test_an_upload_that_was_discarded_at_work_begins_again(
    proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, large_file: Path
) -> None:
    storage = S3Storage(s3_bucket)
    proxy.set(Fault("stall", only="partNumber=4", of="requests"))
    with in_background(lambda: storage.upload(large_file, "a")):
        wait_until(lambda: list(parts_there(s3_client, s3_bucket)) == [1, 2, 3])
        storage.discard_unfinished()
        proxy.set(Fault())
    assert is_stored(s3_client, s3_bucket, "a", large_file)


def test_unfinished_uploads_are_discarded(s3_client: S3Client, s3_bucket: str) -> None:
    for key in ("runs/r/a/x", "runs/r/a/b/y", "runs/r/ab", "runs/z"):
        upload_id = s3_client.create_multipart_upload(Bucket=s3_bucket, Key=key)["UploadId"]
        s3_client.upload_part(Bucket=s3_bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"1")
    storage = open_storage(f"s3://{s3_bucket}/runs/r")

    def left() -> list[str]:
        return [upload["Key"] for upload in s3_client.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", [])]

    storage.discard_unfinished("a")
    storage.discard_unfinished("a")
    assert left() == ["runs/r/ab", "runs/z"]
    storage.discard_unfinished()
    assert left() == ["runs/z"]
    with pytest.raises(StorageError, match="no-such-bucket: cannot discard unfinished uploads: the bucket does not"):
        open_storage("s3://no-such-bucket").discard_unfinished()


def test_a_file_that_may_replace_none(proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs")
    write_bytes(storage, "a", b"1", replace=False)
    write_bytes(storage, "a", b"1", replace=False)
    with pytest.raises(ExistsError, match=f"s3://{s3_bucket}/runs/a: a file with other bytes.*is left as it is"):
        write_bytes(storage, "a", b"2", replace=False)
    with pytest.raises(ExistsError):
        write_bytes(storage, "a", b"11", replace=False)
    assert read_bytes(storage, "a") == b"1"
    write_bytes(storage, "a", b"2")
    assert read_bytes(storage, "a") == b"2"
    proxy.set(Fault("reset", only="PUT ", times=1))  # the answer: the file is there, but the writer does not know
    write_bytes(storage, "b", b"1", replace=False)
    assert proxy.num_faults == 1


def test_a_rival_between_look_and_write(proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str) -> None:
    storage = PatientStorage(S3Storage(s3_bucket), 60)
    proxy.set(Fault("error", only="PUT "))
    with pytest.raises(ExistsError), in_background(lambda: write_bytes(storage, "a", b"2", replace=False)):
        wait_until(lambda: proxy.num_faults > 0)
        s3_client.put_object(Bucket=s3_bucket, Key="a", Body=b"1")
        proxy.set(Fault())
    assert read_bytes(storage, "a") == b"1"


def test_a_large_file_that_may_replace_none(
    s3_client: S3Client, s3_bucket: str, large_file: Path, tmp_path: Path
) -> None:
    storage = open_storage(f"s3://{s3_bucket}")
    storage.upload(large_file, "a", replace=False)
    storage.upload(large_file, "a", replace=False)
    other = tmp_path / "other"
    with other.open("wb") as file:
        file.truncate(FILE_BYTES)
    with pytest.raises(ExistsError):
        storage.upload(other, "a", replace=False)
    assert is_stored(s3_client, s3_bucket, "a", large_file)


def test_a_server_that_is_killed_and_started_again(
    proxy: ChaosProxy,
    s3_environment: S3Server,
    s3_client: S3Client,
    s3_bucket: str,
    large_file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = PatientStorage(S3Storage(s3_bucket), 60)
    proxy.set(Fault("stall", only="partNumber=2", of="requests"))
    with caplog.at_level(logging.WARNING, MESSAGES), in_background(lambda: storage.upload(large_file, "a")):
        wait_until(lambda: list(parts_there(s3_client, s3_bucket)) == [1, 3, 4])
        s3_environment.stop(signal.SIGKILL)
        proxy.set(Fault())
        wait_until(lambda: len(caplog.messages) > 0)
        s3_environment.start()
    first, last = caplog.messages
    assert first.startswith(f"s3://{s3_bucket}/a: cannot upload: the ")
    assert first.endswith(" Trying again for up to 1 min.")
    assert last.startswith("The disturbance is over: s3://")
    assert is_stored(s3_client, s3_bucket, "a", large_file)


@pytest.mark.parametrize(
    "fault",
    [Fault("refuse", times=5), Fault("reset", times=5), Fault("error", status=503, times=5)],
    ids=["refused", "reset", "503"],
)
def test_a_burst_is_outlasted(fault: Fault, proxy: ChaosProxy, s3_bucket: str) -> None:
    """Five failures are more than boto3 bears by itself."""
    proxy.set(fault)
    storage = PatientStorage(S3Storage(s3_bucket), 60)
    write_bytes(storage, "a", b"1")
    assert proxy.num_faults == 5
    assert read_bytes(storage, "a") == b"1"


def test_patience_ends(proxy: ChaosProxy, s3_bucket: str) -> None:
    proxy.set(Fault("refuse"))
    with pytest.raises(PassingError) as caught:
        PatientStorage(S3Storage(s3_bucket), 0.5).list()
    message = str(caught.value)
    assert message.startswith(f"s3://{s3_bucket}: cannot list: the ")
    assert message.endswith(
        f"; the server is {proxy.url}. Check AWS_ENDPOINT_URL, that the server runs, and the network and proxy of this"
        " machine. It was tried again and again for 0.5 s."
    )


@pytest.mark.parametrize("bucket", ["no-such-bucket", None], ids=["no bucket", "wrong credentials"])
def test_refusals_are_not_waited_for(
    bucket: str | None,
    proxy: ChaosProxy,
    s3_bucket: str,
    large_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if bucket is None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    storage = PatientStorage(S3Storage(bucket or s3_bucket), 600)
    actions: list[Callable[[], object]] = [
        lambda: write_bytes(storage, "a", b"1"),
        lambda: write_bytes(storage, "a", b"1", replace=False),
        lambda: storage.upload(large_file, "a"),
        lambda: storage.list(),
        lambda: storage.discard_unfinished(),
    ]
    for action in actions:
        with pytest.raises(StorageError, match=r"wrong credentials|bucket does not exist") as caught:
            action()
        assert not isinstance(caught.value, PassingError)
    assert caplog.messages == []

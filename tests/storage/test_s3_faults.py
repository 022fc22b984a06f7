"""Reads from a real server behind a proxy that breaks, slows down and refuses connections."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.errors import StorageError
from llmforge.storage.cache import fetch_to_cache
from llmforge.storage.types import PassingError
from tests.chaos_proxy import ChaosProxy, Fault
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow

PART_BYTES = 32 << 20
"""Size of the parts in which large objects are read."""


@pytest.fixture
def proxy(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosProxy]:
    """Between this process and the server; `s3_client` goes past it."""
    with ChaosProxy(s3_environment.port).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def content(s3_client: S3Client, s3_bucket: str) -> bytes:
    """Of the object `rows`: three parts."""
    data = os.urandom(1 << 20) * 80
    s3_client.put_object(Bucket=s3_bucket, Key="rows", Body=data)
    return data


def same(path: Path, content: bytes) -> bool:
    return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("after_bytes", [0, 1000, 20 << 20], ids=["at once", "early", "in the middle"])
def test_broken_connections_are_made_again(
    after_bytes: int, content: bytes, proxy: ChaosProxy, s3_bucket: str, tmp_path: Path
) -> None:
    proxy.set(Fault("reset", after_bytes=after_bytes, times=3))
    path = fetch_to_cache(f"s3://{s3_bucket}/rows", tmp_path)
    assert same(path, content)
    assert files_in(tmp_path) == ["rows"]
    assert proxy.num_faults == 3


def test_a_slow_server_is_no_fault(s3_client: S3Client, proxy: ChaosProxy, s3_bucket: str, tmp_path: Path) -> None:
    s3_client.put_object(Bucket=s3_bucket, Key="rows", Body=b"x" * 300_000)
    proxy.set(Fault(bytes_per_second=100_000))
    began_at = time.monotonic()
    assert fetch_to_cache(f"s3://{s3_bucket}/rows", tmp_path).read_bytes() == b"x" * 300_000
    assert time.monotonic() - began_at > 2.9


def test_a_server_that_goes_away_and_comes_back(
    content: bytes, proxy: ChaosProxy, s3_bucket: str, tmp_path: Path
) -> None:
    """For longer than a single request is tried again."""
    paths: list[Path] = []
    proxy.set(Fault(bytes_per_second=40 << 20))
    reader = threading.Thread(target=lambda: paths.append(fetch_to_cache(f"s3://{s3_bucket}/rows", tmp_path)))
    reader.start()
    while proxy.num_connections < 3:  # the object is being read
        time.sleep(0.01)
    proxy.set(Fault("reset"))
    while reader.is_alive() and proxy.num_faults < 14:  # more than single requests outlast
        time.sleep(0.05)
    proxy.set(Fault())
    reader.join()
    assert same(paths[0], content)


def test_a_server_that_never_answers_by_a_whole_connection(proxy: ChaosProxy, s3_bucket: str, tmp_path: Path) -> None:
    proxy.set(Fault("reset"))
    began_at = time.monotonic()
    with pytest.raises(PassingError) as caught:
        fetch_to_cache(f"s3://{s3_bucket}/rows", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"s3://{s3_bucket}/rows: cannot read: the connection to the server failed ")
    assert message.endswith(
        f"; the server is {proxy.url}. Check AWS_ENDPOINT_URL, that the server runs, and the network and proxy of this"
        " machine."
    )
    assert proxy.num_faults == 4
    assert time.monotonic() - began_at < 20
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "secret", "found"),
    [
        ("gone", None, "gone: no such object at "),
        ("rows", "other-secret", "rows: cannot read: the secret key does not fit the access key (wrong credentials)"),
    ],
    ids=["404", "403"],
)
def test_refusals_are_final(
    key: str,
    secret: str | None,
    found: str,
    proxy: ChaosProxy,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if secret is not None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StorageError) as caught:
        fetch_to_cache(f"s3://{s3_bucket}/{key}", tmp_path)
    assert str(caught.value).startswith(f"s3://{s3_bucket}/{found}")
    assert not isinstance(caught.value, PassingError)
    assert proxy.num_connections <= 2  # the object, and a listing to learn why
    assert files_in(tmp_path) == []


def test_an_object_that_changes_while_it_is_read(
    content: bytes, proxy: ChaosProxy, s3_client: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    errors: list[str] = []

    def read() -> None:
        with pytest.raises(StorageError) as caught:
            fetch_to_cache(f"s3://{s3_bucket}/rows", tmp_path)
        errors.append(str(caught.value))

    proxy.set(Fault("stall", after_bytes=PART_BYTES // 2))
    reader = threading.Thread(target=read)
    reader.start()
    while proxy.num_connections < 3:
        time.sleep(0.01)
    s3_client.put_object(Bucket=s3_bucket, Key="rows", Body=content[1:] + b"0")
    proxy.set(Fault("reset", times=2))
    reader.join()
    (message,) = errors
    assert message.startswith(f"s3://{s3_bucket}/rows: ")
    assert "changed while it was" in message and "once nobody writes it" in message
    assert files_in(tmp_path) == []

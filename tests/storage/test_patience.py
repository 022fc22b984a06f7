"""What is tried again, and for how long."""

from __future__ import annotations

import builtins
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.storage.base import Storage, StoredFile, open_storage, read_bytes, write_bytes
from llmforge.storage.patience import PatientStorage, patiently
from llmforge.storage.types import ExistsError, NotFoundError, PassingError


class Server:
    """Answers after `num_failures` errors."""

    def __init__(self, num_failures: int, error: StorageError) -> None:
        self.num_failures = num_failures
        self.error = error
        self.num_requests = 0

    def answer(self) -> str:
        self.num_requests += 1
        if self.num_requests <= self.num_failures:
            raise self.error
        return "answer"


def test_a_disturbance_is_waited_for() -> None:
    server = Server(2, PassingError("reset"))
    assert patiently(server.answer, patience_seconds=0.2) == "answer"
    assert server.num_requests == 3


def test_the_first_wait_and_its_end_are_told(caplog: pytest.LogCaptureFixture) -> None:
    patiently(Server(3, PassingError("s3://b/a: cannot list: reset.")).answer, patience_seconds=0.2)
    assert caplog.messages == [
        "s3://b/a: cannot list: reset. Trying again for up to 0.2 s.",
        "The disturbance is over: s3://b/a: cannot list: reset.",
    ]


def test_not_for_ever() -> None:
    server = Server(1000, PassingError("reset"))
    began_at = time.monotonic()
    with pytest.raises(PassingError, match=r"^reset It was tried again and again for 0\.1 s\.$"):
        patiently(server.answer, patience_seconds=0.1)
    assert server.num_requests >= 3
    assert 0.1 <= time.monotonic() - began_at < 10


def test_progress_gives_more_time() -> None:
    """All tries together take longer than the patience, but none leaves as much to do as the one before."""
    began_at = time.monotonic()
    num_requests = 0

    def send() -> None:
        nonlocal num_requests
        num_requests += 1
        time.sleep(0.05)
        if num_requests < 8:
            error = PassingError("reset")
            error.made_progress = True
            raise error

    patiently(send, patience_seconds=0.2)
    assert num_requests == 8
    assert time.monotonic() - began_at > 0.35


@pytest.mark.parametrize("error", [StorageError("403"), NotFoundError("404")], ids=["refused", "missing"])
def test_a_refusal_is_final(error: StorageError) -> None:
    server = Server(1, error)
    with pytest.raises(type(error)):
        patiently(server.answer)
    assert server.num_requests == 1


@dataclass
class DisturbedStorage:
    """A real storage behind a server that fails `num_failures` times before each operation."""

    inner: Storage
    num_failures: int
    operations: builtins.list[str] = field(default_factory=builtins.list)

    @property
    def root_uri(self) -> str:
        return self.inner.root_uri

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        self._count("upload")
        self.inner.upload(source, key, replace=replace)

    def download(self, key: str, target: Path) -> None:
        self._count("download")
        self.inner.download(key, target)

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        self._count("list")
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._count("delete")
        self.inner.delete(key)

    def discard_unfinished(self, prefix: str = "") -> None:
        self._count("discard_unfinished")
        self.inner.discard_unfinished(prefix)

    def _count(self, operation: str) -> None:
        self.operations.append(operation)
        if self.operations.count(operation) <= self.num_failures:
            raise PassingError("reset")


def test_a_patient_storage_does_each_operation_until_it_is_done(tmp_path: Path) -> None:
    disturbed = DisturbedStorage(open_storage(str(tmp_path / "runs")), num_failures=2)
    storage = PatientStorage(disturbed, 0.2)
    write_bytes(storage, "a", b"1")
    (tmp_path / "runs" / ".x.partial").write_bytes(b"2")
    assert [file.key for file in storage.list()] == ["a"]
    assert read_bytes(storage, "a") == b"1"
    storage.discard_unfinished()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    with pytest.raises(ExistsError):
        write_bytes(storage, "a", b"2", replace=False)
    storage.delete("a")
    assert storage.list() == []
    assert storage.root_uri == str(tmp_path / "runs")
    assert disturbed.operations == [
        *["upload"] * 3,
        *["list"] * 3,
        *["download"] * 3,
        *["discard_unfinished"] * 3,
        "upload",
        *["delete"] * 3,
        "list",
    ]


def test_a_patient_storage_pickles() -> None:
    storage = PatientStorage(open_storage("s3://bucket/runs"), 60)
    assert pickle.loads(pickle.dumps(storage)) == storage


def test_progress_is_kept_in_a_pickle() -> None:
    error = PassingError("reset")
    error.made_progress = True
    assert pickle.loads(pickle.dumps(error)).made_progress

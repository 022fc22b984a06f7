"""Saves in the background: their order, how many there may be, and what becomes of an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from llmforge.checkpoint.queue import SaveQueue
from llmforge.errors import StorageError

WAIT_SECONDS = 10.0


@pytest.fixture
def queue() -> Iterator[SaveQueue]:
    queue = SaveQueue(capacity=2)
    yield queue
    queue.close()


def save(queue: SaveQueue, journal: list[str], name: str, *, until: threading.Event | None = None) -> None:
    """One save whose upload waits for an event."""

    def write() -> str:
        journal.append(f"written {name}")
        return name

    def upload(written: str) -> None:
        if until is not None:
            assert until.wait(WAIT_SECONDS)
        journal.append(f"uploaded {written}")

    queue.reserve()
    queue.submit(write, upload)


def test_saves_are_uploaded_in_their_order(queue: SaveQueue) -> None:
    journal: list[str] = []
    for name in "abc":
        save(queue, journal, name)
    queue.finish()
    assert [entry for entry in journal if entry.startswith("uploaded")] == ["uploaded a", "uploaded b", "uploaded c"]
    assert all(journal.index(f"written {name}") < journal.index(f"uploaded {name}") for name in "abc")


def test_the_next_save_is_written_while_one_is_on_its_way_and_a_third_waits(queue: SaveQueue) -> None:
    journal: list[str] = []
    arrived, both_written = threading.Event(), threading.Event()
    save(queue, journal, "a", until=arrived)
    queue.reserve()
    queue.submit(both_written.set, lambda _: journal.append("uploaded b"))
    assert both_written.wait(WAIT_SECONDS)
    third = threading.Thread(target=save, args=(queue, journal, "c"))
    third.start()
    assert journal == ["written a"]
    arrived.set()
    third.join(WAIT_SECONDS)
    queue.finish()
    assert journal.index("uploaded a") < journal.index("written c")


def test_the_work_yields_the_processor_to_the_training(queue: SaveQueue) -> None:
    found: list[int] = []

    def look(*_: object) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    queue.reserve()
    queue.submit(look, look)
    queue.finish()
    assert found == [min(before + 10, 19)] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.parametrize("failing", ["write", "upload"])
def test_an_error_reaches_whoever_trains_and_ends_all_that_follows(queue: SaveQueue, failing: str) -> None:
    journal: list[str] = []
    error = StorageError("the disk is full")

    def fail(*_: object) -> None:
        raise error

    def work(*_: object) -> None:
        journal.append("done")

    queue.reserve()
    queue.submit(fail if failing == "write" else work, fail if failing == "upload" else work)
    with pytest.raises(StorageError) as caught:
        queue.finish()
    assert caught.value is error
    journal.clear()
    for action in (queue.check, queue.reserve):
        with pytest.raises(StorageError) as caught:
            action()
        assert caught.value is error
    queue.submit(work, work)
    with pytest.raises(StorageError):
        queue.finish()
    assert journal == []

"""No two drivers of one run; and whether the one before is surely gone."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import psutil
import pytest

from llmforge.errors import ConfigError
from llmforge.storage.base import Storage, open_storage, read_bytes, write_bytes
from llmforge.train.driver_record import DRIVER_FILE, take_over


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def write(storage: Storage, **fields: object) -> None:
    """The record of another driver."""
    parent = psutil.Process(os.getppid())
    record = {
        "driver_id": "3fa29c",
        "host": socket.gethostname(),
        "pid": parent.pid,
        "process_started_at": parent.create_time(),
    }
    write_bytes(storage, DRIVER_FILE, json.dumps(record | fields).encode())


def test_the_first_driver_of_a_run(storage: Storage) -> None:
    driver = take_over(storage)
    assert driver.is_previous_gone
    record = json.loads(read_bytes(storage, DRIVER_FILE))
    assert (record["driver_id"], record["pid"]) == (driver.driver_id, os.getpid())
    assert take_over(storage).driver_id != driver.driver_id


def test_a_run_that_is_being_trained_is_left_alone(storage: Storage) -> None:
    write(storage)
    before = read_bytes(storage, DRIVER_FILE)
    with pytest.raises(ConfigError, match=f"is being trained by process {os.getppid()} of this machine right now"):
        take_over(storage)
    assert read_bytes(storage, DRIVER_FILE) == before


@pytest.mark.parametrize(
    ("fields", "is_gone"),
    [
        ({"process_started_at": 1.0}, True),
        ({"host": "another-machine"}, False),
    ],
    ids=["its pid belongs to another process", "nobody can tell from here"],
)
def test_a_driver_that_is_gone_is_followed(storage: Storage, fields: dict[str, object], is_gone: bool) -> None:
    write(storage, **fields)
    assert take_over(storage).is_previous_gone == is_gone


def test_a_record_that_cannot_be_read_stops_nobody(storage: Storage) -> None:
    write_bytes(storage, DRIVER_FILE, b"cut in ha")
    assert take_over(storage).driver_id

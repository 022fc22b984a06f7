"""Room, shared memory, names and ports of a machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llmforge.doctor.machine import Space, check_disks, check_name, check_ports, check_shared_memory, judge_disk

GIB = 2**30


@pytest.mark.parametrize(
    ("total_gib", "free_gib", "state", "advice"),
    [
        (100, 60, "ok", ""),
        (100, 12, "warning", "enough for small models"),
        (1000, 40, "warning", "more than 95% full"),
        (100, 0.5, "failure", "make room"),
    ],
)
def test_room_on_a_disk(total_gib: float, free_gib: float, state: str, advice: str) -> None:
    found = judge_disk("models, /models", Space(int(total_gib * GIB), int(free_gib * GIB)))
    assert (found.state, found.found.startswith(f"models, /models: {free_gib:.1f} GiB free")) == (state, True)
    assert advice in found.advice


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (found,) = check_disks({"runs": tmp_path / "not" / "yet"})
    assert found.name == "disk" and str(tmp_path / "not" / "yet") in found.found


def test_shared_memory(tmp_path: Path) -> None:
    assert check_shared_memory().found.startswith("/dev/shm: ")
    assert check_shared_memory(tmp_path / "none").state == "warning"


def test_the_name_of_the_machine() -> None:
    assert check_name("localhost").found == "localhost is 127.0.0.1"
    found = check_name("no-such-machine.invalid")
    assert found.state == "failure" and "/etc/hosts" in found.advice


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = check_ports([port])
        assert (found.state, found.found) == ("note", f"{port} is in use")
    (found,) = check_ports([port])
    assert (found.state, found.found) == ("ok", f"{port} is free")

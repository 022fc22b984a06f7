"""This machine: room on its disks, shared memory, its name, and the ports of a cluster.

In: folders and ports. Out: a `Check` of each. Small files, sockets on this machine, and nothing else are touched.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmforge.doctor.check import Check, State

_GIB = 2**30
_LEAST_FREE_GIB = 1
_USUAL_FREE_GIB = 20
_RAY_LIMIT = 0.95
"""Ray keeps no objects on a disk that is fuller than this (`local_fs_capacity_threshold`)."""
_LEAST_SHARED_GIB = 1
PORTS = {6379: "the head of a Ray cluster", 8265: "its dashboard and Jobs API", 8000: "llmforge serve"}


@dataclass(frozen=True)
class Space:
    """Bytes of a file system."""

    total: int
    free: int


def space_of(folder: Path) -> Space:
    """Of the file system that `folder` is in, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return Space(usage.total, usage.free)


def check_disks(folders: Mapping[str, Path]) -> Iterator[Check]:
    """The room in each folder, by what it is for."""
    for purpose, folder in folders.items():
        yield judge_disk(f"{purpose}, {folder}", space_of(folder.absolute()))


def judge_disk(place: str, space: Space) -> Check:
    """Whether so much room is enough for a job."""
    free_gib = space.free / _GIB
    full = 1 - space.free / space.total
    found = f"{place}: {free_gib:.1f} GiB free"
    if free_gib < _LEAST_FREE_GIB:
        return Check("disk", "failure", found, "make room, or name another place")
    if full > _RAY_LIMIT:
        advice = f"make room: Ray keeps nothing on a disk that is more than {_RAY_LIMIT:.0%} full"
        return Check("disk", "warning", f"{found}, {full:.0%} full", advice)
    if free_gib < _USUAL_FREE_GIB:
        advice = (
            "enough for small models; the weights of 8 billion parameters take 16 GB, and are fetched once per node"
        )
        return Check("disk", "warning", found, advice)
    return Check("disk", "ok", found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where Ray passes data between processes."""
    if not folder.is_dir():
        return Check("shared memory", "warning", f"no {folder}", "Ray will use files, which is slow")
    free_gib = space_of(folder).free / _GIB
    state: State = "ok" if free_gib >= _LEAST_SHARED_GIB else "warning"
    advice = (
        "" if state == "ok" else "start the container with more: --shm-size=8g, or a volume of memory in Kubernetes"
    )
    return Check("shared memory", state, f"{folder}: {free_gib:.1f} GiB free", advice)


def check_name(name: str | None = None) -> Check:
    """Whether the processes of this machine find it by its own name, as training workers do."""
    name = name or socket.gethostname()
    try:
        with socket.create_server((name, 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address[:2], timeout=5):
                return Check("name", "ok", f"{name} is {address[0]}")
    except OSError as error:
        advice = "add it to /etc/hosts with the address of this machine, or mend the name service"
        return Check("name", "failure", f"{name} does not lead to this machine: {error}", advice)


def check_ports(ports: Iterable[int] = tuple(PORTS)) -> Iterator[Check]:
    """Which of the usual ports are in use; a job itself takes any that are free."""
    for port in ports:
        use = PORTS.get(port, "")
        if _is_free(port):
            yield Check("port", "ok", f"{port} is free ({use})" if use else f"{port} is free")
        else:
            advice = "a cluster that runs here has it already, or another program: choose another port for a new one"
            yield Check("port", "note", f"{port} is in use ({use})" if use else f"{port} is in use", advice)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0

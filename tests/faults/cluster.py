"""A Ray cluster of several nodes on this machine, one of which can be lost: each node is a raylet of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
from ray.cluster_utils import Cluster

from tests.faults.driver_process import kill

REASON = "DRAIN_NODE_REASON_PREEMPTION"
_START_SECONDS = 90.0

_RAY = str(Path(sys.executable).with_name("ray"))
_HIDE = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'
"""A shell command that lays folders over others, by pairs, for one program and its children."""


@dataclass(frozen=True)
class NodeApart:
    """A raylet that shares no disk with other nodes, as far as the folders go that it was given of its own."""

    folder: Path
    """Holds them, by the names of those in whose place it sees them."""
    process: subprocess.Popen[bytes]

    def lose(self) -> None:
        """All of its processes die at once."""
        for process in (psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)):
            kill(process)
        self.process.wait()


class Nodes:
    """One CPU each, but the first, which may have none; that is where the driver connects."""

    def __init__(self, cluster: Cluster, at_the_end: ExitStack) -> None:
        self._cluster = cluster
        self._at_the_end = at_the_end

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> object:
        """Another node; returns it for the methods below."""
        return self._cluster.add_node(num_cpus=1)

    def add_apart(self, folder: Path, hidden: Sequence[Path]) -> NodeApart:
        """Another node, by `ray start`; in place of the `hidden` folders it sees empty ones of its own.

        Returns when it has joined: nodes of one machine name their sockets in one folder, and two that do so at the
        same time can take the same name, by which one of them dies.
        """
        places = []
        for path in hidden:
            (folder / path.name).mkdir(parents=True)
            places += [str(folder / path.name), str(path)]
        namespace = ["unshare", "--user", "--map-root-user", "--mount"]
        start = [_RAY, "start", "--address", self.address, "--num-cpus", "1", "--block", "--disable-usage-stats"]
        told = folder / "ray.log"
        with told.open("wb") as log:
            process = subprocess.Popen(
                [*namespace, "sh", "-c", _HIDE, "sh", *places, "--", *start], stdout=log, stderr=subprocess.STDOUT
            )
        node = NodeApart(folder, process)
        self._at_the_end.callback(lambda: node.lose() if process.poll() is None else None)
        deadline = time.monotonic() + _START_SECONDS
        while "Ray runtime started." not in told.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node has not started:\n{told.read_text()}")
            time.sleep(0.2)
        return node

    def lose(self, node: object) -> None:
        """All processes of a node die at once."""
        self._cluster.remove_node(node, allow_graceful=False)

    def announce_loss(self, node_id: str, seconds: int) -> None:
        """As a provider does that takes a spot machine away."""
        command = [_RAY, "drain-node", "--address", self.address, "--node-id", node_id, "--reason", REASON]
        message = ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run([*command, *message], check=True, capture_output=True)


@contextmanager
def open_nodes(environment: Mapping[str, str], head_cpus: int = 1) -> Iterator[Nodes]:
    """A cluster of one node whose processes see this environment."""
    # The path of Ray's sockets is bounded, so its folder has a short name.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        patch.dict("os.environ", {**environment, "RAY_TMPDIR": folder}, clear=True),
    ):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus})
        with ExitStack() as at_the_end:
            at_the_end.callback(cluster.shutdown)
            yield Nodes(cluster, at_the_end)

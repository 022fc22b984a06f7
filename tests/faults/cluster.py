"""A Ray cluster of several nodes on this machine, one of which can be lost: each node is a raylet of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from ray.cluster_utils import Cluster

REASON = "DRAIN_NODE_REASON_PREEMPTION"


class Nodes:
    """One CPU each; the first is where the driver connects."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> object:
        """Another node; returns it for the methods below."""
        return self._cluster.add_node(num_cpus=1)

    def lose(self, node: object) -> None:
        """All processes of a node die at once."""
        self._cluster.remove_node(node, allow_graceful=False)

    def announce_loss(self, node_id: str, seconds: int) -> None:
        """As a provider does that takes a spot machine away."""
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "drain-node", "--address", self.address, "--node-id", node_id, "--reason", REASON]
        message = ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run([*command, *message], check=True, capture_output=True)


@contextmanager
def open_nodes(environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A cluster of one node whose processes see this environment."""
    # The path of Ray's sockets is bounded, so its folder has a short name.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        patch.dict("os.environ", {**environment, "RAY_TMPDIR": folder}, clear=True),
    ):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            yield Nodes(cluster)
        finally:
            cluster.shutdown()

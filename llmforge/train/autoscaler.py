"""What Ray's autoscaler is doing, where the cluster has one.

In: a connected Ray. Out: how many nodes are on their way, and what it cannot do. There are two autoscalers: the newer
one (KubeRay) reports to the cluster's control service, the older one (`ray up`) leaves a JSON text there. The older
one also runs, to no effect, on a cluster that was started by hand; then it has no type for a node but the node itself.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined] # made by Cython
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply

_NO_TYPE = re.compile("node_[0-9a-f]+")
_NUM_TOLD = 2
"""Problems; one line is to hold them."""


@dataclass(frozen=True)
class AutoscalerView:
    """What the autoscaler has last reported."""

    num_starting: int
    """Nodes that are on their way."""
    problems: tuple[str, ...] = ()

    def describe(self) -> str:
        """In one line."""
        nodes = "no node is" if self.num_starting == 0 else f"{self.num_starting} nodes are"
        starting = "1 node is" if self.num_starting == 1 else nodes
        return "; ".join([f"{starting} starting", *self.problems[:_NUM_TOLD]])


def view_autoscaler() -> AutoscalerView | None:
    """What it has last reported; None where the cluster has none that could add nodes."""
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status())
    if reply.autoscaling_state.autoscaler_state_version > 0:
        return view_of_state(reply.autoscaling_state)
    status = client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = json.loads(status).get("autoscaler_report") if status else None
    return None if report is None else view_of_report(report)


def view_of_state(state: AutoscalingState) -> AutoscalerView:
    """Of what the newer one has reported."""
    requested = sum(request.count for request in state.pending_instance_requests)
    problems = [f"{failed.ray_node_type_name}: {failed.reason}" for failed in state.failed_instance_requests]
    if state.infeasible_gang_resource_requests:
        problems.append("the autoscaler may start no nodes on which all would fit")
    return AutoscalerView(requested + len(state.pending_instances), tuple(dict.fromkeys(problems)))


def view_of_report(report: dict[str, Any]) -> AutoscalerView | None:
    """Of what the older one has reported; None where it runs to no effect."""
    active = report["active_nodes"]
    if active and all(_NO_TYPE.fullmatch(node_type) for node_type in active):
        return None
    failed = (f"{node_type} at {address} has failed" for address, node_type in report["failed_nodes"])
    launched = report["node_availability_summary"]["node_availabilities"].values()
    refused = (
        f"{record['node_type']}: {record['unavailable_node_information']['description']}"
        for record in launched
        if record.get("unavailable_node_information")
    )
    num_starting = len(report["pending_nodes"]) + sum(report["pending_launches"].values())
    return AutoscalerView(num_starting, tuple(dict.fromkeys([*refused, *failed])))

"""What the training workers of a job ask a cluster for, and in words what it lacks of that.

In: a job whose accelerator is decided, and the resources of nodes. It knows nothing of Ray but the names of resources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llmforge.config.job import JobConfig
from llmforge.config.memory_plan import GIB

ROUNDING = 1e-6
"""Amounts are fractions such as 0.1, and 3 x 0.1 > 0.3 in floating point."""
_IN_BYTES = ("memory", "object_store_memory")
OR_WAIT = "or set resource_timeout_seconds to wait for nodes that are still to come"
_REMEDY = "lower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes"


def resources_per_worker(job: JobConfig) -> dict[str, float]:
    """What each training worker asks Ray for.

    Ray Train gives all workers the same, so `trainer_resources`, meant for the first worker, holds for all of them.
    """
    device = {"GPU": 1.0} if job.accelerator == "gpu" else {"CPU": 1.0}
    resources = dict(job.worker_resources or {})
    for key, amount in (job.trainer_resources or {}).items():
        resources[key] = max(amount, resources.get(key, 0.0))
    return {**device, **resources}


def describe_shortage(job: JobConfig, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why the workers could never all start on these nodes, and what to do; None where they could.

    One mapping that holds the sums of all nodes may stand for them; then only sums are compared.
    """
    per_worker = resources_per_worker(job)
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in per_worker}
    missing = [
        f"  {name}: {job.min_devices} x {amount:g} = {amount * job.min_devices:g} needed, the cluster has"
        f" {totals[name]:g}"
        for name, amount in per_worker.items()
        if amount * job.min_devices > totals[name] + ROUNDING
    ]
    if missing:
        listed = "\n".join(missing)
        return f"num_devices: the cluster is too small for the training workers:\n{listed}\n{_REMEDY}"
    places = sum(count_places(per_worker, node) for node in nodes)
    if places >= job.min_devices:
        return None
    worker = ", ".join(f"{name} {amount:g}" for name, amount in per_worker.items())
    return (
        f"num_devices: found {job.min_devices} training workers that each need {worker} on one node; the"
        f" {len(nodes)} nodes of the cluster have room for {places}\n{_REMEDY}, or lower worker_resources"
    )


def count_places(per_worker: Mapping[str, float], node: Mapping[str, float]) -> float:
    """How many workers fit on a node; any number where they ask for nothing."""
    counts = [math.floor(node.get(name, 0.0) / amount + ROUNDING) for name, amount in per_worker.items() if amount]
    return min(counts, default=math.inf)


def describe_workers(num_workers: int, per_worker: Mapping[str, float]) -> str:
    """What so many workers ask for, such as `4 x {GPU: 1, memory: 32 GiB}`."""
    amounts = (
        f"{name}: {amount / GIB:.3g} GiB" if name in _IN_BYTES else f"{name}: {amount:g}"
        for name, amount in per_worker.items()
    )
    return f"{num_workers} x {{{', '.join(amounts)}}}"

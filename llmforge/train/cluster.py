"""The Ray side of a run: starting or joining a cluster, and saying early what it lacks.

In: what a job asks for. Out: a connected Ray, or a `ClusterError` that names what is asked, what there is, and what is
missing. It knows nothing of training.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from llmforge.config.demand import OR_WAIT, describe_shortage
from llmforge.config.job import JobConfig
from llmforge.errors import ClusterError
from llmforge.train.autoscaler import view_autoscaler

RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a failure, of the workers is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class ClusterFacts:
    """What the cluster has."""

    nodes: Sequence[Mapping[str, float]]
    """Resources of each, used or not."""
    can_grow: bool = False
    """An autoscaler adds nodes where they are asked for."""

    @property
    def num_gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.get("GPU", 0.0) for node in self.nodes)


def start_ray(*, verbose: bool) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; does nothing where Ray runs already.

    On a thread that ends, Ray's own processes would end with it.
    """
    if ray.is_initialized():
        return
    for key, value in RAY_SETTINGS.items():
        os.environ.setdefault(key, value)
    level = logging.INFO if verbose else logging.ERROR
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)
    try:
        ray.init(
            include_dashboard=None if is_remote() else False,
            log_to_driver=verbose,
            logging_level=level,
        )
    except ConnectionError as error:
        raise ClusterError(
            f"RAY_ADDRESS: no Ray cluster answers at {os.environ.get('RAY_ADDRESS')} ({error}); "
            "check the address, or unset it to run on this machine"
        ) from error


def is_remote() -> bool:
    """Whether the cluster is one that runs by itself, and not one started here for this run."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cluster_facts() -> ClusterFacts:
    """What there is, used or not."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterFacts(nodes, can_grow=view_autoscaler() is not None)


def check_resources(job: JobConfig, facts: ClusterFacts) -> None:
    """Raise `ClusterError` at once where the workers could never all start.

    A cluster that can grow, and a job that says how long it waits, are given their time.
    """
    shortage = describe_shortage(job, facts.nodes)
    if shortage is not None and not facts.can_grow and not job.resource_timeout_seconds:
        raise ClusterError(f"{shortage}, {OR_WAIT}")

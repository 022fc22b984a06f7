"""The Ray side of a run: starting or joining a cluster, and saying early what it lacks.

In: what a job asks for. Out: a connected Ray, or a `ClusterError` that names what is asked, what there is, and what is
missing. It knows nothing of training.
"""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from llmforge.config.job import JobConfig
from llmforge.errors import ClusterError

RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a failure, of the workers is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
WAIT_SECONDS = 20.0
ROUNDING = 1e-6
"""Amounts are fractions such as 0.1, and 3 x 0.1 > 0.3 in floating point."""


@dataclass(frozen=True)
class ClusterFacts:
    """What the cluster has."""

    resources: Mapping[str, float]

    @property
    def num_gpus(self) -> float:
        """GPUs of all nodes."""
        return self.resources.get("GPU", 0)


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
    """What all nodes together have, used or not."""
    return ClusterFacts(ray.cluster_resources())


def resources_per_worker(job: JobConfig) -> dict[str, float]:
    """What each training worker asks Ray for.

    Ray Train gives all workers the same, so `trainer_resources`, meant for the first worker, holds for all of them.
    """
    device = {"GPU": 1.0} if job.accelerator == "gpu" else {"CPU": 1.0}
    resources = dict(job.worker_resources or {})
    for key, amount in (job.trainer_resources or {}).items():
        resources[key] = max(amount, resources.get(key, 0.0))
    return {**device, **resources}


def check_resources(job: JobConfig, facts: ClusterFacts) -> None:
    """Raise `ClusterError` at once where the workers could never all start."""
    missing = []
    for name, amount in resources_per_worker(job).items():
        needed, available = amount * job.num_devices, facts.resources.get(name, 0.0)
        if needed > available + ROUNDING:
            missing.append(
                f"  {name}: {job.num_devices} x {amount:g} = {needed:g} needed, the cluster has {available:g}"
            )
    if missing:
        raise ClusterError(
            "num_devices: the cluster is too small for the training workers:\n"
            + "\n".join(missing)
            + "\nlower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes"
        )


def wait_for_resources(job: JobConfig, seconds: float = WAIT_SECONDS) -> None:
    """Wait a little while other work frees what the workers need; raise `ClusterError` if it does not."""
    deadline = time.monotonic() + seconds
    while True:
        available = ray.available_resources()
        lacking = {
            name: f"{amount * job.num_devices:g} needed, {available.get(name, 0.0):g} free"
            for name, amount in resources_per_worker(job).items()
            if available.get(name, 0.0) + ROUNDING < amount * job.num_devices
        }
        if not lacking:
            return
        if time.monotonic() > deadline:
            listed = "\n".join(f"  {name}: {text}" for name, text in lacking.items())
            raise ClusterError(
                f"the cluster is busy; after {seconds:g} s the training workers still lack:\n{listed}\n"
                "stop other jobs, lower num_devices, or start again later"
            )
        time.sleep(0.2)

"""What a worker of a Ray cluster that holds a model may take of its node."""

import ray
import torch

from llmforge.errors import ClusterError


def device_per_worker(num_workers: int, option: str) -> dict[str, float]:
    """A GPU each where the cluster has any, else an equal share of its CPUs, in the words of Ray's options.

    Raises `ClusterError`, which names `option`, where there are too few.
    """
    resources = ray.cluster_resources()
    name = "GPU" if resources.get("GPU", 0) else "CPU"
    found = resources.get(name, 0)
    if num_workers > found:
        raise ClusterError(
            f"{option}: found {num_workers}, allowed are at most {found:g} in this cluster, which has so many {name}s "
            "and gives each worker one; take fewer, or add nodes"
        )
    return {"num_gpus": 1.0} if name == "GPU" else {"num_cpus": float(found // num_workers)}


def use_assigned_cpus() -> None:
    """Let torch use as many threads as this worker has CPUs, where there is no GPU."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

"""Whether a job can run on a cluster, as far as that shows before it is submitted.

In: a checked job and what the dashboard tells of the cluster. Out: what is wrong with the job there, or worth a
warning. The run itself checks the same things again, when more is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmforge.config.demand import OR_WAIT, describe_shortage
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from llmforge.errors import ClusterError
from llmforge.jobs.shipment import is_on_cluster
from llmforge.storage.uri import is_s3, local_path


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster is made of."""

    nodes: Sequence[Mapping[str, float]]
    """Resources of each node."""
    can_grow: bool
    """Whether it has an autoscaler."""


def find_unreachable_output(job: JobConfig, size: ClusterSize, cluster_paths: Sequence[str]) -> list[Finding]:
    """Why the output folder of a job cannot be what it is on this cluster."""
    folder, key = job.output_dir, ("output_dir",)
    if is_s3(folder) or is_on_cluster(folder, cluster_paths):
        return []
    allowed = "allowed is s3://bucket/prefix, or a folder that all nodes see (name it by --cluster-path, too)"
    if not folder.startswith(("/", "file:")):
        why = "it counts from the job's folder on the cluster, which Ray removes with the job"
        return [Finding(key, f"found {folder}, {allowed}: {why}")]
    if len(size.nodes) > 1 or size.can_grow:
        why = "on the disk of one node the others do not find it"
        return [Finding(key, f"found {folder}, a local folder; {allowed}: {why}")]
    return []


def check_size(job: JobConfig, size: ClusterSize) -> Iterator[str]:
    """Warnings about the size of the cluster. Raises `ClusterError` where it can never run the job."""
    has_gpu = any(node.get("GPU", 0.0) > 0 for node in size.nodes)
    if job.accelerator == "auto" and not has_gpu and size.can_grow:
        yield (
            "accelerator: auto means CPUs as long as the cluster has no GPU, and it has none now; write accelerator:"
            " gpu to wait for the autoscaler"
        )
    accelerator = ("gpu" if has_gpu else "cpu") if job.accelerator == "auto" else job.accelerator
    shortage = describe_shortage(job.model_copy(update={"accelerator": accelerator}), size.nodes)
    if shortage is None:
        return
    if not size.can_grow and not job.resource_timeout_seconds:
        raise ClusterError(f"{shortage}, {OR_WAIT}")
    yield f"the job waits until the cluster has grown: {shortage}"


def find_passing_bases(job: JobConfig, cluster_paths: Sequence[str]) -> Iterator[str]:
    """Warnings about base models that go along, though what the run leaves behind needs them for good."""
    for key in ("model_id", "initial_base_model_ckpt_path") if job.method == "lora" else ():
        address = getattr(job, key)
        is_local = isinstance(address, str) and not is_s3(address) and local_path(address).is_dir()
        if is_local and not is_on_cluster(address, cluster_paths):
            yield (
                f"{key}: {address} goes along as a copy, which Ray removes with the job, and an adapter needs its base"
                " model wherever it is used: name one of the hub, or a folder that all nodes see (--cluster-path)"
            )

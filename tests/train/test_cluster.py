"""What a job asks of a cluster, and what is said where it is too small."""

from __future__ import annotations

import pytest

from llmforge.config.demand import describe_shortage, resources_per_worker
from llmforge.config.job import JobConfig
from llmforge.errors import ClusterError
from llmforge.train.cluster import ClusterFacts, check_resources

Resources = dict[str, float]


def job(
    accelerator: str = "gpu",
    num_devices: int = 1,
    trainer_resources: Resources | None = None,
    worker_resources: Resources | None = None,
) -> JobConfig:
    return JobConfig.model_validate(
        {
            "model_id": "meta-llama/Meta-Llama-3-8B",
            "train_path": "train.jsonl",
            "accelerator": accelerator,
            "num_devices": num_devices,
            "trainer_resources": trainer_resources,
            "worker_resources": worker_resources,
        }
    )


@pytest.mark.parametrize(
    ("accelerator", "trainer_resources", "worker_resources", "expected"),
    [
        ("gpu", None, None, {"GPU": 1}),
        ("cpu", None, None, {"CPU": 1}),
        ("cpu", None, {"CPU": 4}, {"CPU": 4}),
        ("gpu", None, {"CPU": 8, "memory": 1e9}, {"GPU": 1, "CPU": 8, "memory": 1e9}),
        ("gpu", {"accelerator_type:A10G": 0.001}, None, {"GPU": 1, "accelerator_type:A10G": 0.001}),
        ("gpu", {"CPU": 2, "memory": 5}, {"CPU": 8, "memory": 3}, {"GPU": 1, "CPU": 8, "memory": 5}),
    ],
)
def test_resources_per_worker(
    accelerator: str, trainer_resources: Resources | None, worker_resources: Resources | None, expected: Resources
) -> None:
    """The larger of the two where both name the same."""
    assert resources_per_worker(job(accelerator, 3, trainer_resources, worker_resources)) == expected


@pytest.mark.parametrize(
    ("accelerator", "resources"),
    [("gpu", {"GPU": 2.0, "CPU": 0.0}), ("gpu", {"GPU": 8.0}), ("cpu", {"CPU": 2.0})],
)
def test_a_cluster_that_is_large_enough(accelerator: str, resources: Resources) -> None:
    check_resources(job(accelerator, num_devices=2), ClusterFacts([resources]))


def test_too_few_devices() -> None:
    with pytest.raises(ClusterError) as caught:
        check_resources(job("gpu", num_devices=4), ClusterFacts([{"CPU": 32.0, "GPU": 1.0}, {"CPU": 32.0, "GPU": 1.0}]))
    assert str(caught.value) == (
        "num_devices: the cluster is too small for the training workers:\n"
        "  GPU: 4 x 1 = 4 needed, the cluster has 2\n"
        "lower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes, "
        "or set resource_timeout_seconds to wait for nodes that are still to come"
    )


def test_a_cluster_that_can_grow_and_a_job_that_waits_are_given_their_time() -> None:
    too_small = [{"GPU": 1.0}]
    check_resources(job(num_devices=4), ClusterFacts(too_small, can_grow=True))
    check_resources(job(num_devices=4).model_copy(update={"resource_timeout_seconds": 60}), ClusterFacts(too_small))
    with pytest.raises(ClusterError):
        check_resources(job(num_devices=4).model_copy(update={"resource_timeout_seconds": 0}), ClusterFacts(too_small))


def test_everything_that_is_missing_is_named() -> None:
    asked = job("gpu", 2, {"accelerator_type:A10G": 0.5}, {"CPU": 2.5, "memory": 100})
    with pytest.raises(ClusterError) as caught:
        check_resources(asked, ClusterFacts([{"CPU": 4.0, "memory": 1000.0}]))
    assert str(caught.value).splitlines()[1:-1] == [
        "  GPU: 2 x 1 = 2 needed, the cluster has 0",
        "  CPU: 2 x 2.5 = 5 needed, the cluster has 4",
        "  accelerator_type:A10G: 2 x 0.5 = 1 needed, the cluster has 0",
    ]


def test_number_of_gpus() -> None:
    assert ClusterFacts([{"CPU": 4.0}]).num_gpus == 0
    assert ClusterFacts([{"GPU": 6.0}, {"GPU": 2.0}]).num_gpus == 8


def test_workers_that_fit_by_sum_and_on_no_node() -> None:
    asked = job("gpu", num_devices=4, worker_resources={"CPU": 8, "memory": 0})
    node = {"CPU": 12.0, "GPU": 4.0, "memory": 100.0}
    assert describe_shortage(asked, [node, node, node, node]) is None
    assert describe_shortage(asked, [node, node, {"CPU": 16.0, "GPU": 1.0}]) == (
        "num_devices: found 4 training workers that each need GPU 1, CPU 8, memory 0 on one node; the 3 nodes of the "
        "cluster have room for 3\nlower num_devices (and raise gradient_accumulation_steps by the same factor), or add "
        "nodes, or lower worker_resources"
    )

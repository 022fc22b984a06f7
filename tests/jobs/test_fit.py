"""What is said of a job and a cluster before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig, parse_job
from llmforge.errors import ClusterError
from llmforge.jobs.fit import ClusterSize, check_size, find_passing_bases, find_unreachable_output

CPU_NODE = {"CPU": 16.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


def job(**keys: object) -> JobConfig:
    data = {"model_id": "meta-llama/Llama-3.1-8B", "train_path": "s3://bucket/train.jsonl", **keys}
    return parse_job(json.dumps(data), "job.yaml").job


def test_auto_is_a_gpu_where_the_cluster_has_one() -> None:
    assert list(check_size(job(num_devices=8), ClusterSize([GPU_NODE, GPU_NODE], can_grow=False))) == []
    with pytest.raises(ClusterError, match="GPU: 9 x 1 = 9 needed, the cluster has 8"):
        list(check_size(job(num_devices=9), ClusterSize([GPU_NODE, GPU_NODE], can_grow=False)))
    assert list(check_size(job(num_devices=16), ClusterSize([CPU_NODE], can_grow=False))) == []


def test_what_may_come_is_waited_for() -> None:
    (warning,) = check_size(job(num_devices=2), ClusterSize([CPU_NODE], can_grow=True))
    assert warning.startswith("accelerator: auto means CPUs as long as the cluster has no GPU")
    asked = job(num_devices=2, accelerator="gpu")
    (warning,) = check_size(asked, ClusterSize([CPU_NODE], can_grow=True))
    assert warning.startswith("the job waits until the cluster has grown: num_devices: the cluster is too small")
    waiting = job(num_devices=2, accelerator="gpu", resource_timeout_seconds=60)
    assert len(list(check_size(waiting, ClusterSize([CPU_NODE], can_grow=False)))) == 1
    with pytest.raises(ClusterError, match="GPU: 2 x 1 = 2 needed, the cluster has 0"):
        list(check_size(asked, ClusterSize([CPU_NODE], can_grow=False)))


@pytest.mark.parametrize(
    ("folder", "nodes", "can_grow", "is_reachable"),
    [
        ("s3://bucket/runs", 3, True, True),
        ("/mnt/nfs/runs", 3, True, True),
        ("/data/runs", 1, False, True),
        ("/data/runs", 2, False, False),
        ("/data/runs", 1, True, False),
        ("runs", 1, False, False),
        ("~/runs", 1, False, False),
    ],
)
def test_where_a_run_may_be_left(folder: str, nodes: int, can_grow: bool, is_reachable: bool) -> None:
    size = ClusterSize([CPU_NODE] * nodes, can_grow=can_grow)
    findings = find_unreachable_output(job(output_dir=folder), size, ["/mnt/nfs"])
    assert [finding.path for finding in findings] == ([] if is_reachable else [("output_dir",)])


def test_a_base_model_that_goes_along_is_no_base_for_an_adapter(tmp_path: Path) -> None:
    own = {"model_id": str(tmp_path), "lora_config": {"r": 8}}
    (warning,) = find_passing_bases(job(**own), [])
    assert warning.startswith(f"model_id: {tmp_path} goes along as a copy")
    assert list(find_passing_bases(job(**own), [str(tmp_path)])) == []
    assert list(find_passing_bases(job(model_id=str(tmp_path)), [])) == []
    assert list(find_passing_bases(job(lora_config={"r": 8}), [])) == []

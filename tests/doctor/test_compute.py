"""Torch and DeepSpeed, tried in processes that may die of it."""

from __future__ import annotations

import sys

import pytest

from llmforge.doctor.check import Check
from llmforge.doctor.compute import Probe, check_compute
from llmforge.doctor.facts import CommunicationFacts, DeepSpeedFacts, Device, DevicesFacts, Facts, TorchFacts

TORCH = TorchFacts(version="2.13.0+cu128", cuda="12.8", has_driver=True)
H200 = Device(name="NVIDIA H200", memory_gib=139.8, has_bf16=True)
T4 = Device(name="Tesla T4", memory_gib=14.6, has_bf16=False)


def told(*facts: Facts, then: str = "", stages: tuple[str, ...] = ("torch", "devices", "communication")) -> list[Check]:
    """What is said of a machine whose probe tells `facts`, and then does something else."""
    lines = "".join(f"print({fact.model_dump_json()!r}, flush=True)\n" for fact in facts)
    probe = Probe((sys.executable, "-c", f"print('noise')\n{lines}{then}"), stages, timeout_seconds=5)
    return list(check_compute([probe]))


def test_a_machine_with_gpus() -> None:
    communication = CommunicationFacts(backend="nccl", num_ranks=2)
    assert told(TORCH, DevicesFacts(devices=(H200, H200)), communication) == [
        Check("torch", "ok", "2.13.0+cu128, CUDA 12.8"),
        Check("devices", "ok", "NVIDIA H200 (140 GiB), NVIDIA H200 (140 GiB)"),
        Check("communication", "ok", "nccl, a sum over 2 processes is right"),
    ]


def test_gpus_without_bf16() -> None:
    (found,) = told(DevicesFacts(devices=(T4,)), stages=("devices",))
    assert (found.state, found.advice) == ("warning", "these GPUs have no bf16: set precision: fp16 in the job")


def test_a_build_for_cpus_on_a_machine_with_a_gpu() -> None:
    (found,) = told(TorchFacts(version="2.13.0+cpu", cuda=None, has_driver=True), stages=("torch",))
    assert (found.state, found.advice) == ("failure", "install a build of torch with CUDA")


def test_deepspeed_says_what_it_can_offload_to() -> None:
    (found,) = told(DeepSpeedFacts(version="0.19.8", has_nvme_offload=False), stages=("deepspeed",))
    assert found.state == "ok" and "libaio-dev" in found.advice
    (found,) = told(DeepSpeedFacts(version="0.19.8", has_nvme_offload=True), stages=("deepspeed",))
    assert (found.found, found.advice) == ("0.19.8, offload to main memory and to NVMe", "")


def test_a_driver_that_is_too_old() -> None:
    """The stage that has no line is the one that failed, in the words that the process ended with."""
    torch, devices = told(TORCH, then="raise RuntimeError('The NVIDIA driver on your system is too old')")
    assert torch.state == "ok"
    assert (devices.name, devices.state) == ("devices", "failure")
    assert devices.found == "RuntimeError: The NVIDIA driver on your system is too old"
    assert "nvidia-smi" in devices.advice


def test_a_process_that_is_killed() -> None:
    (found,) = told(then="import os\nos.abort()")
    assert (found.name, found.state, found.found) == ("torch", "failure", "the process ended with code -6")


def test_processes_that_wait_for_each_other_forever() -> None:
    probe = Probe(("sh", "-c", "echo waiting; exec sleep 60"), ("communication",), timeout_seconds=0.2)
    (found,) = check_compute([probe])
    assert (found.name, found.state, found.found) == ("communication", "failure", "did not end within 0.2 s")
    assert "NCCL_SOCKET_IFNAME" in found.advice


@pytest.mark.slow
def test_this_machine() -> None:
    found = {check.name: check for check in check_compute()}
    assert set(found) == {"torch", "devices", "communication", "deepspeed"}
    assert all(check.state in ("ok", "note") for check in found.values()), found
    assert found["communication"].found.endswith("is right")

"""Torch, the GPUs, their communication and DeepSpeed: tried for real, each in a process that may die of it.

In: the probes to run. Out: a `Check` of each stage. A broken driver can abort a whole process, so nothing of this is
imported here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmforge.doctor.check import Check
from llmforge.doctor.facts import CommunicationFacts, DeepSpeedFacts, DevicesFacts, Facts, TorchFacts, read_facts

_NO_BF16 = "these GPUs have no bf16: set precision: fp16 in the job"
_HARDWARE_STAGES = ("torch", "devices", "communication")
_ADVICE = {
    "torch": "install it again: pip install --force-reinstall torch, in the build for this machine's CUDA",
    "devices": "compare the driver (nvidia-smi) with the CUDA that torch was built with; update the driver, or install "
    "the build of torch for it",
    "communication": "the processes of this machine cannot reach each other: check that its own name resolves "
    "(getent hosts $(hostname)), and name the network in NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; "
    "NCCL_DEBUG=INFO tells more",
    "deepspeed": "install it again: pip install --force-reinstall 'llmforge[train]'",
}


@dataclass(frozen=True)
class Probe:
    """A program that tries stages one after another."""

    command: Sequence[str]
    stages: Sequence[str]
    timeout_seconds: float = 180


COMPUTE = Probe((sys.executable, "-m", "llmforge.doctor.compute_probe"), _HARDWARE_STAGES)
DEEPSPEED = Probe((sys.executable, "-m", "llmforge.doctor.deepspeed_probe"), ("deepspeed",))


def check_compute(probes: Sequence[Probe] = (COMPUTE, DEEPSPEED)) -> Iterator[Check]:
    """Every stage that was passed, and the one that was not."""
    for probe in probes:
        facts, last_words = _run(probe)
        for fact in facts:
            yield _judge(fact)
        if len(facts) < len(probe.stages):
            stage = probe.stages[len(facts)]
            yield Check(stage, "failure", last_words, _ADVICE[stage])


def _run(probe: Probe) -> tuple[list[Facts], str]:
    """(what was told, the last words of a probe that did not reach its end)."""
    environment = {"TOKENIZERS_PARALLELISM": "false", **os.environ}
    try:
        done = subprocess.run(
            probe.command, capture_output=True, text=True, timeout=probe.timeout_seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        told = error.stdout or b""
        output = told.decode(errors="replace") if isinstance(told, bytes) else told
        return read_facts(output), f"did not end within {probe.timeout_seconds:g} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return read_facts(done.stdout), lines[-1] if lines else f"the process ended with code {done.returncode}"


def _judge(facts: Facts) -> Check:
    match facts:
        case TorchFacts(cuda=None, has_driver=True):
            found = f"{facts.version}, a build for CPUs, on a machine with an NVIDIA driver"
            return Check("torch", "failure", found, "install a build of torch with CUDA")
        case TorchFacts():
            return Check("torch", "ok", facts.version + (f", CUDA {facts.cuda}" if facts.cuda else ", for CPUs"))
        case DevicesFacts(devices=()):
            found = "none; jobs on this machine run on its CPUs"
            return Check("devices", "note", found, "for real models use a cluster with GPUs")
        case DevicesFacts():
            listed = ", ".join(f"{one.name} ({one.memory_gib:.0f} GiB)" for one in facts.devices)
            has_bf16 = all(one.has_bf16 for one in facts.devices)
            return Check("devices", "ok" if has_bf16 else "warning", listed, "" if has_bf16 else _NO_BF16)
        case CommunicationFacts():
            return Check("communication", "ok", f"{facts.backend}, a sum over {facts.num_ranks} processes is right")
        case DeepSpeedFacts():
            return _judge_deepspeed(facts)


def _judge_deepspeed(facts: DeepSpeedFacts) -> Check:
    if facts.has_nvme_offload:
        return Check("deepspeed", "ok", f"{facts.version}, offload to main memory and to NVMe")
    advice = "for offload to NVMe install libaio's headers (libaio-dev) and a C++ compiler"
    return Check("deepspeed", "ok", f"{facts.version}, offload to main memory, not to NVMe", advice)

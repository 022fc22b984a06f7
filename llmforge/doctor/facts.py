"""What the probes (`compute_probe.py`, `deepspeed_probe.py`) tell of a machine: lines of JSON between two processes."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from llmforge.config.base import StrictModel


class TorchFacts(StrictModel):
    """What torch says of itself."""

    stage: Literal["torch"] = "torch"
    version: str
    cuda: str | None
    """The CUDA that it was built with; None for a CPU build."""
    has_driver: bool
    """Whether the kernel has an NVIDIA driver, whatever torch can do with it."""


class Device(StrictModel):
    """One GPU."""

    name: str
    memory_gib: float
    has_bf16: bool


class DevicesFacts(StrictModel):
    """The GPUs that torch can use."""

    stage: Literal["devices"] = "devices"
    devices: tuple[Device, ...]


class CommunicationFacts(StrictModel):
    """A sum over several processes that came out right."""

    stage: Literal["communication"] = "communication"
    backend: str
    num_ranks: int


class DeepSpeedFacts(StrictModel):
    """DeepSpeed, and what of it needs more than the package."""

    stage: Literal["deepspeed"] = "deepspeed"
    version: str
    has_nvme_offload: bool


Facts = TorchFacts | DevicesFacts | CommunicationFacts | DeepSpeedFacts

_READER: TypeAdapter[Facts] = TypeAdapter(Annotated[Facts, Field(discriminator="stage")])


def tell(facts: Facts) -> None:
    """Print one line for the process that listens."""
    sys.stdout.write(facts.model_dump_json() + "\n")
    sys.stdout.flush()


def read_facts(output: str) -> list[Facts]:
    """The facts among the lines of a probe; other lines are the packages' own words."""
    return [_READER.validate_json(line) for line in output.splitlines() if line.startswith('{"stage":')]

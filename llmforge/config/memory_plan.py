"""How much memory of each device training takes, part by part: arithmetic on numbers given to it.

In: parameter counts, and how they are trained. Out: bytes of each part with the formula that gave them, so that a
person can check it. Parameters, gradients and optimizer are what DeepSpeed 0.19 keeps under `train/engine.py`, measured
in fp32 and bf16 (fp16 by its source); the ZeRO paper (Rajbhandari et al. 2020, section 3) says why.
`activation_plan.py` counts what a batch adds. Not counted: the CUDA context (about half a GiB) and what the allocator
cannot use; `fits` leaves room for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.config.finding import descend

GIB = 2**30
USABLE_SHARE = 0.9
"""Of a device's memory."""
_BUCKET_ELEMENTS = 500_000_000
_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`."""


@dataclass(frozen=True)
class QuantizedWeights:
    """Base weights as bitsandbytes holds them."""

    num_weights: int
    num_bytes: int
    """Scales included."""


@dataclass(frozen=True)
class OptimizerSize:
    """What an optimizer keeps of each trained parameter."""

    num_bytes: float
    name: str


ADAM_MOMENTS = OptimizerSize(8, "Adam moments")


@dataclass(frozen=True)
class TrainedModel:
    """How many parameters there are, and how they are held."""

    num_parameters: int
    """The adapter's included."""
    num_trained: int
    bytes_per_weight: int
    """4 in fp32, 2 in bf16 and fp16."""
    has_fp32_gradients: bool
    """Whether gradients are added up in fp32 beside weights in fewer bits, as under bf16."""
    quantized: QuantizedWeights | None = None
    """Those of `num_parameters` that are held in 4 or 8 bits."""
    optimizer: OptimizerSize = ADAM_MOMENTS


@dataclass(frozen=True)
class Sharding:
    """What ZeRO does with it."""

    stage: int
    num_devices: int
    bucket_elements: int = _BUCKET_ELEMENTS
    live_elements: int = _LIVE_ELEMENTS
    offloads_optimizer: bool = False
    offloads_parameters: bool = False


@dataclass(frozen=True)
class MemoryPart:
    """One part of the plan."""

    name: str
    num_bytes: int
    formula: str


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one device."""

    parts: tuple[MemoryPart, ...]

    @property
    def total_bytes(self) -> int:
        """All parts."""
        return sum(part.num_bytes for part in self.parts)

    def fits(self, device_memory_gib: float) -> bool:
        """Whether all of it takes at most nine tenths of a device."""
        return self.total_bytes <= USABLE_SHARE * device_memory_gib * GIB


def read_sharding(deepspeed_config: Mapping[str, Any], num_devices: int) -> Sharding:
    """What a DeepSpeed configuration without `auto` values says."""
    zero = deepspeed_config.get("zero_optimization", {})
    return Sharding(
        stage=zero.get("stage", 0),
        num_devices=num_devices,
        bucket_elements=int(zero.get("reduce_bucket_size", _BUCKET_ELEMENTS)),
        live_elements=int(zero.get("stage3_max_live_parameters", _LIVE_ELEMENTS)),
        offloads_optimizer=descend(zero, ("offload_optimizer", "device"))[1] not in (None, "none"),
        offloads_parameters=descend(zero, ("offload_param", "device"))[1] not in (None, "none"),
    )


def plan_state(model: TrainedModel, sharding: Sharding) -> tuple[MemoryPart, ...]:
    """Parameters, gradients, optimizer, and DeepSpeed's buffers where it has some."""
    parts = (_parameters(model, sharding), _gradients(model, sharding), _optimizer(model, sharding))
    buffers = _buffers(model, sharding)
    return (*parts, buffers) if buffers.num_bytes else parts


def _parameters(model: TrainedModel, sharding: Sharding) -> MemoryPart:
    whole = model.num_parameters - (model.quantized.num_weights if model.quantized else 0)
    num_bytes = whole * model.bytes_per_weight
    formula = f"{whole:,} x {model.bytes_per_weight} B"
    if model.quantized is not None:
        num_bytes += model.quantized.num_bytes
        size = model.quantized.num_bytes / model.quantized.num_weights
        formula += f" + {model.quantized.num_weights:,} quantized x {size:.3f} B"
    if sharding.offloads_parameters:
        return MemoryPart("parameters", 0, f"{formula}, offloaded")
    return _shared("parameters", num_bytes, formula, sharding, from_stage=3)


def _gradients(model: TrainedModel, sharding: Sharding) -> MemoryPart:
    if sharding.stage == 1 and model.has_fp32_gradients:
        formula = f"{model.num_trained:,} trained x ({model.bytes_per_weight} B + 4 B added up in fp32)"
        return MemoryPart("gradients", model.num_trained * (model.bytes_per_weight + 4), formula)
    # From stage 2 on the optimizer takes a device's share in fp32, whatever the precision of the weights.
    size = 4 if sharding.stage >= 2 else model.bytes_per_weight
    formula = f"{model.num_trained:,} trained x {size} B"
    return _shared("gradients", model.num_trained * size, formula, sharding, from_stage=2)


def _optimizer(model: TrainedModel, sharding: Sharding) -> MemoryPart:
    # ZeRO holds weights in fp32 of its own, also beside weights in fp32.
    size = model.optimizer.num_bytes + (4 if sharding.stage >= 1 else 0)
    what = f"{model.optimizer.num_bytes:g} B {model.optimizer.name}"
    formula = f"{model.num_trained:,} trained x ({'4 B fp32 weight + ' if sharding.stage >= 1 else ''}{what})"
    if sharding.offloads_optimizer:
        return MemoryPart("optimizer", 0, f"{formula}, offloaded")
    return _shared("optimizer", int(model.num_trained * size), formula, sharding, from_stage=1)


def _buffers(model: TrainedModel, sharding: Sharding) -> MemoryPart:
    """For the exchange of gradients, and under stage 3 for parameters that are whole for a while."""
    name, size = "DeepSpeed's buffers", model.bytes_per_weight
    if sharding.stage == 0 or (sharding.stage == 1 and model.has_fp32_gradients):
        elements = min(sharding.bucket_elements, model.num_trained) if sharding.num_devices > 1 else 0
        size = 4 if model.has_fp32_gradients else size
        return MemoryPart(name, elements * size, f"{elements:,} gradients on their way x {size} B")
    bucket = f"reduce_bucket_size {sharding.bucket_elements:,} x {size} B"
    if sharding.stage < 3:
        return MemoryPart(name, sharding.bucket_elements * size, bucket)
    live = min(sharding.live_elements, model.num_parameters)
    formula = f"{bucket} + {live:,} parameters that are whole at a time (stage3_max_live_parameters) x {size} B"
    return MemoryPart(name, (sharding.bucket_elements + live) * size, formula)


def _shared(name: str, num_bytes: int, formula: str, sharding: Sharding, *, from_stage: int) -> MemoryPart:
    if sharding.stage < from_stage or sharding.num_devices == 1:
        return MemoryPart(name, num_bytes, formula)
    shared = f"{formula} / {sharding.num_devices} devices (ZeRO stage {sharding.stage})"
    return MemoryPart(name, -(-num_bytes // sharding.num_devices), shared)

"""How much memory of each device training takes, part by part: arithmetic on numbers given to it.

In: parameter counts, how they are trained, and the largest batch. Out: bytes of each part with the formula that gave
them, so that a person can check it. Parameters, gradients and optimizer are what DeepSpeed 0.19 keeps under
`train/engine.py`, measured in fp32 and bf16 (fp16 by its source); the ZeRO paper (Rajbhandari et al. 2020, section 3)
says why.
Activations are counted layer by layer as `transformers` computes a Llama, and are an estimate for its relatives.
Not counted: the CUDA context (about half a GiB) and what the allocator cannot use; `fits` leaves room for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.config.finding import descend
from llmforge.config.model_shape import ModelShape

GIB = 2**30
USABLE_SHARE = 0.9
"""Of a device's memory."""
_BUCKET_ELEMENTS = 500_000_000
_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`."""


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
class LargestBatch:
    """The micro-batch that takes most memory."""

    num_sequences: int
    num_tokens: int
    """Of each sequence, padding included."""
    num_logit_columns: int
    """Positions of each sequence at which logits are computed."""
    gradient_checkpointing: bool
    attention: str


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


def plan_activations(shape: ModelShape, model: TrainedModel, batch: LargestBatch) -> tuple[MemoryPart, ...]:
    """What the forward pass keeps for the backward pass, and the most that one step of either needs beside it."""
    tokens = batch.num_sequences * batch.num_tokens
    layer_bytes, layer_formula = _layer(shape, model.bytes_per_weight, batch)
    logit_elements = batch.num_sequences * batch.num_logit_columns * shape.vocab_size
    logits = MemoryPart(
        "logits and their gradients",
        12 * logit_elements,
        f"12 B (fp32 log-probabilities and two gradients) x {batch.num_sequences} sequences x "
        f"{batch.num_logit_columns:,} positions x {shape.vocab_size:,} tokens of the vocabulary",
    )
    last_norm = shape.hidden_size * (4 + model.bytes_per_weight)
    if batch.gradient_checkpointing:
        per_layer = tokens * shape.hidden_size * model.bytes_per_weight
        formula = f"{tokens:,} tokens x {shape.hidden_size:,} x {model.bytes_per_weight} B, the input of each layer"
    else:
        per_layer, formula = layer_bytes, layer_formula
    kept = MemoryPart(
        "activations",
        shape.num_layers * per_layer + tokens * last_norm,
        f"{shape.num_layers} layers x ({formula}) + {tokens:,} tokens x {last_norm:,} B of the last norm",
    )
    if not batch.gradient_checkpointing:
        return kept, logits
    passing, passing_formula = _passing(shape, model.bytes_per_weight, batch)
    if logits.num_bytes >= layer_bytes + passing:
        return kept, logits
    formula = f"{layer_formula} + {passing_formula}; more than the logits take, which come before"
    return kept, MemoryPart("one layer computed again", layer_bytes + passing, formula)


def _parameters(model: TrainedModel, sharding: Sharding) -> MemoryPart:
    num_bytes = model.num_parameters * model.bytes_per_weight
    formula = f"{model.num_parameters:,} x {model.bytes_per_weight} B"
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
    size = 12 if sharding.stage >= 1 else 8
    what = "4 B fp32 weight + 8 B Adam moments" if sharding.stage >= 1 else "8 B Adam moments"
    formula = f"{model.num_trained:,} trained x ({what})"
    if sharding.offloads_optimizer:
        return MemoryPart("optimizer", 0, f"{formula}, offloaded")
    return _shared("optimizer", model.num_trained * size, formula, sharding, from_stage=1)


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


def _layer(shape: ModelShape, size: int, batch: LargestBatch) -> tuple[int, str]:
    """Bytes that one decoder layer keeps for its backward pass, and their formula.

    Per token: two norms (the input in fp32, the normed and the scaled value), queries, keys, values and the result of
    attention for every head (keys and values are repeated where heads share them) and a sum in fp32, four tensors of
    the inner size. Per pair of tokens: what keeps packed examples apart, and with `eager` attention the weights of
    every head.
    """
    norms = 2 * shape.hidden_size * (4 + 2 * size)
    attention = shape.num_heads * (4 * shape.head_dim * size + 4)
    inner = 4 * shape.intermediate_size * size
    per_token = norms + attention + inner
    weights = 4 if size == 4 else 4 + size  # computed in fp32, and kept in the precision of the values as well
    per_pair = size + (shape.num_heads * weights if batch.attention == "eager" else 0)
    tokens = batch.num_sequences * batch.num_tokens
    formula = (
        f"{tokens:,} tokens x {per_token:,} B + {batch.num_sequences} x {batch.num_tokens:,} x "
        f"{batch.num_tokens:,} pairs x {per_pair} B"
    )
    return tokens * per_token + tokens * batch.num_tokens * per_pair, formula


def _passing(shape: ModelShape, size: int, batch: LargestBatch) -> tuple[int, str]:
    """Bytes of the gradients that are on their way through one layer, and their formula: three of the inner size, a
    norm's two in fp32, and with `eager` attention one in fp32 for every weight.
    """
    tokens = batch.num_sequences * batch.num_tokens
    per_token = 3 * shape.intermediate_size * size + 2 * shape.hidden_size * 4
    per_pair = 4 * shape.num_heads if batch.attention == "eager" else 0
    return tokens * (per_token + batch.num_tokens * per_pair), f"gradients on their way, {tokens:,} tokens x " + (
        f"{per_token + batch.num_tokens * per_pair:,} B"
    )

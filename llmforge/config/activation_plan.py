"""How much memory of a device a batch takes, part by part: arithmetic on numbers given to it.

In: the shape of a model, how it is trained, and the largest micro-batch. Out: bytes of each part with the formula that
gave them. Counted layer by layer as `transformers` computes a Llama, and an estimate for its relatives.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.memory_plan import MemoryPart, TrainedModel
from llmforge.config.model_shape import ModelShape

LOGITS_AT_ONCE = {"cpu": 2**23, "gpu": 2**27}
"""Logits that training computes at one time, by the kind of device."""


@dataclass(frozen=True)
class LargestBatch:
    """The micro-batch that takes most memory."""

    num_sequences: int
    num_tokens: int
    """Of each sequence, padding included."""
    num_trained_tokens: int
    """Of all sequences: positions at which logits are computed."""
    gradient_checkpointing: bool
    has_masks: bool = False
    """Whether a mask keeps examples apart, and not attention by documents."""
    keeps_scores: bool = False
    """Whether attention keeps the weight of every pair of tokens, as `eager` does."""
    trains_head: bool = False
    """Whether the output layer, or what it shares with the input, is trained."""
    logits_at_once: int = LOGITS_AT_ONCE["gpu"]


def plan_activations(shape: ModelShape, model: TrainedModel, batch: LargestBatch) -> tuple[MemoryPart, ...]:
    """What the forward pass keeps for the backward pass, and the most that one step of either needs beside it."""
    tokens = batch.num_sequences * batch.num_tokens
    layer_bytes, layer_formula = _layer(shape, model.bytes_per_weight, batch)
    logits = _logits(shape, model.bytes_per_weight, batch)
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


def _logits(shape: ModelShape, size: int, batch: LargestBatch) -> MemoryPart:
    """One chunk of logits with their softmax in fp32, or with their gradient and that of the output layer, which is
    added up over the chunks; and the hidden states of the trained tokens with their gradient.
    """
    chunk = max(1, batch.logits_at_once // shape.vocab_size)
    positions = min(batch.num_trained_tokens, chunk)
    logits = positions * shape.vocab_size
    each = 8 if size == 4 else size + 8  # CPUs convert to fp32 first; a GPU does it on the way, and takes 2 B less
    formula = f"{positions:,} positions at a time x {shape.vocab_size:,} tokens of the vocabulary x {each} B"
    num_bytes = each * logits
    if batch.trains_head:
        weights, sums = shape.num_embedding_parameters, 4 if batch.num_trained_tokens > chunk else 0
        num_bytes = max(num_bytes, 2 * size * logits + size * weights) + sums * weights
        formula += f", {weights:,} gradients of the output layer x {size + sums} B"
    hidden = 2 * batch.num_trained_tokens * shape.hidden_size * size
    formula += f", 2 x {batch.num_trained_tokens:,} trained tokens x {shape.hidden_size:,} x {size} B"
    return MemoryPart("logits and their gradients", num_bytes + hidden, formula)


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
    per_pair = (size if batch.has_masks else 0) + (shape.num_heads * weights if batch.keeps_scores else 0)
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
    per_pair = 4 * shape.num_heads if batch.keeps_scores else 0
    return tokens * (per_token + batch.num_tokens * per_pair), f"gradients on their way, {tokens:,} tokens x " + (
        f"{per_token + batch.num_tokens * per_pair:,} B"
    )

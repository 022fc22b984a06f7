"""What a model is made of, from its `config.json` alone: linear layers, parameters, and what an adapter adds to them.

In: the plain data of `config.json`. Out: exact counts for the decoder families of one table (`_LAYOUTS`), nothing for
any other: a guess would look like a fact. It reads no file and needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.config.model import LoraConfig


@dataclass(frozen=True)
class _Layout:
    """How the decoder layers of a family differ from Llama's."""

    qkv_bias: bool | None = None
    """None: as `attention_bias` in `config.json` says, then for the output projection as well."""
    is_fused: bool = False
    """One layer for query, key and value, and one for gate and up."""
    num_norms: int = 2
    has_head_norms: bool = False
    """Norms of queries and keys, over one head each."""
    head_dim: int | None = None
    """Where `config.json` gives none; None: the hidden size divided by the heads."""
    ties_embeddings: bool = False
    """Where `config.json` says nothing."""


_LAYOUTS = {
    "llama": _Layout(),
    "mistral": _Layout(qkv_bias=False),
    "granite": _Layout(),
    "qwen2": _Layout(qkv_bias=True),
    "qwen3": _Layout(has_head_norms=True, head_dim=128),
    "phi3": _Layout(qkv_bias=False, is_fused=True),
    "gemma": _Layout(head_dim=256, ties_embeddings=True),
    "gemma2": _Layout(num_norms=4, head_dim=256, ties_embeddings=True),
    "gemma3_text": _Layout(num_norms=4, has_head_norms=True, head_dim=256, ties_embeddings=True),
}
"""By `model_type`; each is counted against `transformers` in a test."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer."""

    name: str
    """Such as `model.layers.0.self_attn.q_proj`."""
    layer: int
    num_inputs: int
    num_outputs: int
    has_bias: bool = False

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return self.num_inputs * self.num_outputs + (self.num_outputs if self.has_bias else 0)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder of one of the known families."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    ties_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def num_embedding_parameters(self) -> int:
        """Of one embedding matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters; a matrix that input and output share counts once."""
        layout = _LAYOUTS[self.model_type]
        embeddings = self.num_embedding_parameters * (1 if self.ties_embeddings else 2)
        norms = layout.num_norms * self.hidden_size + (2 * self.head_dim if layout.has_head_norms else 0)
        linears = sum(linear.num_parameters for linear in self.linear_layers())
        return embeddings + linears + self.num_layers * norms + self.hidden_size

    def linear_layers(self) -> Iterator[Linear]:
        """The linear layers of all decoder layers, so without the output layer."""
        for number in range(self.num_layers):
            for name, num_inputs, num_outputs, has_bias in self._linears():
                yield Linear(f"model.layers.{number}.{name}", number, num_inputs, num_outputs, has_bias)

    def _linears(self) -> list[tuple[str, int, int, bool]]:
        layout = _LAYOUTS[self.model_type]
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        qkv_bias = self.attention_bias if layout.qkv_bias is None else layout.qkv_bias
        output_bias = self.attention_bias and layout.qkv_bias is None
        if layout.is_fused:
            before = [("self_attn.qkv_proj", hidden, queries + 2 * keys, qkv_bias)]
            gates = [("mlp.gate_up_proj", hidden, 2 * inner, self.mlp_bias)]
        else:
            sizes = (("q", queries), ("k", keys), ("v", keys))
            before = [(f"self_attn.{name}_proj", hidden, size, qkv_bias) for name, size in sizes]
            gates = [(f"mlp.{name}_proj", hidden, inner, self.mlp_bias) for name in ("gate", "up")]
        return [
            *before,
            ("self_attn.o_proj", queries, hidden, output_bias),
            *gates,
            ("mlp.down_proj", inner, hidden, self.mlp_bias),
        ]


def read_model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The sizes in the data of a `config.json`; None for a family that is not known, or without one of the sizes."""
    layout = _LAYOUTS.get(str(config.get("model_type")))
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = [config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0]
    if layout is None or len(sizes) < len(names):
        return None
    vocab_size, hidden_size, intermediate_size, num_layers, num_heads = sizes
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        model_type=config["model_type"],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_value_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or layout.head_dim or hidden_size // num_heads,
        ties_embeddings=layout.ties_embeddings if tied is None else bool(tied),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
    )


def count_adapter_parameters(shape: ModelShape, lora: LoraConfig) -> int | None:
    """Trained parameters of a LoRA adapter, as PEFT makes it; None where `lora` says more than is counted here.

    A layer of `n` inputs and `m` outputs gets `r * (n + m)` (Hu et al. 2021, "LoRA"). Only adapters beside linear
    layers and whole copies of `embed_tokens` and `lm_head` are counted.
    """
    whole = set(lora.modules_to_save or ())
    beyond = (lora.target_parameters, lora.trainable_token_indices, whole - {"embed_tokens", "lm_head"})
    if any(beyond) or lora.bias != "none" or lora.target_modules is None:
        return None
    adapted = [linear for linear in shape.linear_layers() if _has_adapter(linear, lora)]
    return len(whole) * shape.num_embedding_parameters + sum(_adapter_size(linear, lora) for linear in adapted)


def _adapter_size(linear: Linear, lora: LoraConfig) -> int:
    matches = (rank for pattern, rank in lora.rank_pattern.items() if re.match(rf"(.*\.)?({pattern})$", linear.name))
    rank = next(matches, lora.r)
    extra = int(lora.use_dora) + int(lora.lora_bias)  # DoRA's magnitudes, and a bias: one number an output each
    return rank * (linear.num_inputs + linear.num_outputs) + extra * linear.num_outputs


def _has_adapter(linear: Linear, lora: LoraConfig) -> bool:
    layers = lora.layers_to_transform
    allowed = (layers,) if isinstance(layers, int) else layers
    if allowed is not None and linear.layer not in allowed:
        return False
    if lora.exclude_modules is not None and _is_named(linear.name, lora.exclude_modules):
        return False
    return lora.target_modules == "all-linear" or _is_named(linear.name, lora.target_modules or ())


def _is_named(name: str, names: str | tuple[str, ...]) -> bool:
    """As PEFT matches: one regular expression for the whole name, or the last parts of names."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{ending}") for ending in names)

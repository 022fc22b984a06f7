"""Attention that keeps the examples of a pack apart: the back ends, which of them a model can use, and the best one.

Two ways to lay a batch out. By *documents*: all tokens of the micro-batch in one row without padding, and the lengths
of the documents in it, each of which attends to itself only. By *masks*: rows of packs, padded to the longest, and a
block-diagonal mask that `transformers` derives from positions that start anew. No kernel here is our own: those by
documents call torch's SDPA document by document, torch's variable-length attention, or flash attention.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, Literal, cast

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from llmforge.errors import ModelError

_LOG = logging.getLogger(__name__)

Attention = Literal["flash_attention_2", "varlen", "sdpa_per_document", "flex", "sdpa", "eager"]
BY_DOCUMENTS: tuple[Attention, ...] = ("flash_attention_2", "varlen", "sdpa_per_document")
_PREFERRED: tuple[Attention, ...] = ("flash_attention_2", "varlen", "sdpa_per_document", "sdpa", "eager")
"""From the fastest on. `flex` only by name: it compiles anew for lengths that it has not seen."""
_NAMES: dict[Attention, str] = {
    "varlen": "llmforge_varlen",
    "sdpa_per_document": "llmforge_sdpa_per_document",
    "flex": "flex_attention",
}
"""What `transformers` calls a back end, where that differs."""
_VARLEN_MAX_HEAD = 256
_VARLEN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Documents:
    """Where the documents of one row of tokens end."""

    lengths: tuple[int, ...]
    offsets: torch.Tensor
    """Sums of the lengths so far, from 0 on, shape (documents + 1,), int32, on the device of the tokens."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Documents":
        """On the CPU."""
        return cls(tuple(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))

    def to(self, device: torch.device) -> "Documents":
        """The same on a device."""
        return Documents(self.lengths, self.offsets.to(device, non_blocking=True))

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a model's forward pass, by the names that its attention layers know."""
        longest = max(self.lengths)
        return {
            "document_lengths": self.lengths,
            "cu_seq_lens_q": self.offsets,
            "cu_seq_lens_k": self.offsets,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def use_attention(
    model: PreTrainedModel, requested: str, *, device: torch.device, allow_flash_attention: bool = True
) -> Attention:
    """Switch a model to the back end `requested`, or for `auto` to the best that it can use there, and say which.

    Raises `ModelError` where the model, the device or the installed packages cannot do what was asked for by name.
    """
    _register()
    if requested == "auto":
        reasons = {name: _obstacle(name, model, device) for name in _PREFERRED}
        if not allow_flash_attention:
            reasons["flash_attention_2"] = "flash_attention_2 is false"
        chosen = next(name for name in _PREFERRED if reasons[name] is None)
        passed = [f"{name}: {reasons[name]}" for name in _PREFERRED[: _PREFERRED.index(chosen)]]
        _LOG.info("attention: %s%s", chosen, f" ({'; '.join(passed)})" if passed else "")
    else:
        chosen = cast(Attention, requested)
        obstacle = _obstacle(chosen, model, device)
        if obstacle is not None:
            raise ModelError(
                f"attention: found {chosen}, which cannot be used: {obstacle}; write auto, or another back end"
            )
    model.set_attn_implementation(_NAMES.get(chosen, chosen))
    return chosen


def _obstacle(name: Attention, model: PreTrainedModel, device: torch.device) -> str | None:
    """Why a model cannot use a back end on a device; None where it can."""
    match name:
        case "flash_attention_2":
            return _flash_obstacle(model, device) or _documents_obstacle(model)
        case "varlen":
            return _varlen_obstacle(model, device) or _documents_obstacle(model) or _sdpa_obstacle(model)
        case "sdpa_per_document":
            return _documents_obstacle(model) or _sdpa_obstacle(model)
        case "flex":
            if device.type == "cpu":
                return "torch has no backward pass of it for CPUs"
            return None if model._supports_flex_attn else f"{model.config.model_type} does not know it"
        case "sdpa":
            return _sdpa_obstacle(model)
        case "eager":
            return None


def _flash_obstacle(model: PreTrainedModel, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it needs a GPU"
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    return _precision_obstacle(model)


def _varlen_obstacle(model: PreTrainedModel, device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _VARLEN_CAPABILITY:
        return "it needs a GPU of compute capability 8.0"
    if getattr(model.config.get_text_config(), "attention_dropout", 0.0):
        return "it has no dropout, and the model's attention_dropout is not 0"
    if _head_dim(model) > _VARLEN_MAX_HEAD:
        return f"heads are wider than {_VARLEN_MAX_HEAD}"
    return _precision_obstacle(model)


def _precision_obstacle(model: PreTrainedModel) -> str | None:
    return None if model.dtype in (torch.bfloat16, torch.float16) else "it needs bf16 or fp16"


def _documents_obstacle(model: PreTrainedModel) -> str | None:
    """Attention by documents sees no mask: what a model says by masks alone would be lost."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or not (model._supports_attention_backend and model._supports_flash_attn):
        return f"{model.config.model_type} has attention of other kinds"
    return None


def _sdpa_obstacle(model: PreTrainedModel) -> str | None:
    """Neither SDPA nor torch's variable-length attention has soft caps of attention scores, or sinks."""
    return None if model._supports_sdpa else f"{model.config.model_type} does more than plain attention"


def _head_dim(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _register() -> None:
    """Make the back ends by documents known to `transformers`; the second time changes nothing."""
    for name, function in (("varlen", _varlen_attention), ("sdpa_per_document", _attention_per_document)):
        AttentionInterface.register(_NAMES[cast(Attention, name)], function)
        AttentionMaskInterface.register(_NAMES[cast(Attention, name)], flash_attention_mask)


@dataclass(frozen=True)
class _Layer:
    """What a layer asks of its attention, beside queries, keys and values."""

    lengths: tuple[int, ...]
    """Of the documents."""
    offsets: torch.Tensor
    scaling: float | None
    dropout: float
    sliding_window: int | None

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "_Layer":
        """From the keyword arguments; raises `ModelError` where something would be passed over here."""
        unknown = [name for name, value in asked.items() if name not in _KNOWN and value is not None and value != {}]
        if unknown:
            raise ModelError(
                f"attention: the model's layers ask for {', '.join(unknown)}, which attention by documents does not "
                "have; set attention: sdpa or eager"
            )
        if asked.get("document_lengths") is None:
            raise ModelError(
                "attention: the model does not hand the lengths of documents to its layers; set attention: sdpa"
            )
        return cls(
            asked["document_lengths"],
            asked["cu_seq_lens_q"],
            asked.get("scaling"),
            asked.get("dropout", 0.0),
            asked.get("sliding_window"),
        )


_KNOWN = frozenset(
    {"document_lengths", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    | {"scaling", "dropout", "sliding_window", "position_ids", "use_cache"}
)


def _attention_per_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Causal SDPA of one document after another.

    `query` has shape (1, heads, tokens, head size), `key` and `value` the same with their own number of heads; the
    result (1, tokens, heads, head size), as `transformers` expects it. No mask is ever given.
    """
    layer = _Layer.of(asked)
    outputs = []
    documents = (torch.split(tensor, list(layer.lengths), dim=2) for tensor in (query, key, value))
    for queries, keys, values in zip(*documents, strict=True):
        window = _window_mask(queries, layer.sliding_window)
        outputs.append(
            functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=window,
                dropout_p=layer.dropout,
                scale=layer.scaling,
                is_causal=window is None,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _window_mask(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    """What each token of a document sees, where the document is longer than the window; shape (tokens, tokens)."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return seen.tril().triu(1 - sliding_window)


def _varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's variable-length attention; shapes as in `_attention_per_document`."""
    layer = _Layer.of(asked)
    longest = max(layer.lengths)
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer.offsets,
        layer.offsets,
        longest,
        longest,
        scale=layer.scaling,
        window_size=(-1 if layer.sliding_window is None else layer.sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(torch.Tensor, output)[None], None

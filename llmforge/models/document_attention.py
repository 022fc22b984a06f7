"""Attention by documents: all tokens of a micro-batch in one row, and each document of it by itself.

Two attention functions as `transformers` calls them, with the lengths of the documents as keyword arguments of the
model's forward pass; what a layer asks for and they do not have is refused. No kernel here is our own: they call
torch's SDPA document by document, or torch's variable-length flash attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from llmforge.errors import ModelError

VARLEN = "llmforge_varlen"
SDPA_PER_DOCUMENT = "llmforge_sdpa_per_document"
"""What `transformers` calls them here."""


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


def register_document_attention() -> None:
    """Make both known to `transformers`; the second time changes nothing."""
    for name, function in ((VARLEN, _varlen_attention), (SDPA_PER_DOCUMENT, _attention_per_document)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, flash_attention_mask)  # none at all, where nothing is padded


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

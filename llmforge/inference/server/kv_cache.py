"""Keys and values of several sequences in one cache, so that they can be decoded together.

Sequences of different lengths stand right-aligned: a shorter one has padding on its left, which the attention mask
hides. So rows can join a batch and leave it between any two steps, also in layers that keep a sliding window only.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_stack(cache: DynamicCache) -> bool:
    """Whether every layer keeps keys and values by position; a layer with a state of another kind cannot be padded."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def stacked(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One cache with the rows of all, in order. The first is changed in place."""
    if len(caches) == 1:
        return caches[0]
    length = max(cache.get_seq_length() for cache in caches)
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        target = layers[0]
        if not target.is_initialized:  # a layer that reads another one's keys
            continue
        target.keys = _aligned([layer.keys for layer in layers])
        target.values = _aligned([layer.values for layer in layers])
        _set_length(target, length)
    return caches[0]


def keep_rows(cache: DynamicCache, rows: Sequence[int], length: int) -> None:
    """Leave only some rows, of which the longest has `length` tokens, and drop the padding that is no longer needed."""
    index = None
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        if index is None or index.device != layer.keys.device:
            index = torch.tensor(rows, device=layer.keys.device)
        width = min(length, layer.keys.shape[-2])
        layer.keys = layer.keys.index_select(0, index)[..., -width:, :]
        layer.values = layer.values.index_select(0, index)[..., -width:, :]
        _set_length(layer, length)


def _aligned(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors (rows, heads, tokens, size) as one, each with zeros on the left up to the longest."""
    width = max(tensor.shape[-2] for tensor in tensors)
    padded = [torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0)) for tensor in tensors]
    return torch.cat(padded)


def _set_length(layer: DynamicLayer, length: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = length

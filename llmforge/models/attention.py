"""Which attention keeps the examples of a pack apart: the back ends, what a model can use of them, and the best.

Two ways to lay a batch out. By *documents* (`document_attention.py`, and flash attention, which does the same): all
tokens of the micro-batch in one row without padding, and the lengths of the documents in it, each of which attends to
itself only. By *masks*: rows of packs, padded to the longest, and a block-diagonal mask that `transformers` derives
from positions that start anew.
"""

import logging
from importlib.util import find_spec
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from llmforge.errors import ModelError
from llmforge.models.document_attention import SDPA_PER_DOCUMENT, VARLEN, register_document_attention

_LOG = logging.getLogger(__name__)

Attention = Literal["flash_attention_2", "varlen", "sdpa_per_document", "flex", "sdpa", "eager"]
BY_DOCUMENTS: tuple[Attention, ...] = ("flash_attention_2", "varlen", "sdpa_per_document")
_PREFERRED: tuple[Attention, ...] = ("flash_attention_2", "varlen", "sdpa_per_document", "sdpa", "eager")
"""From the fastest on. `flex` only by name: it compiles anew for lengths that it has not seen."""
_NAMES: dict[Attention, str] = {
    "varlen": VARLEN,
    "sdpa_per_document": SDPA_PER_DOCUMENT,
    "flex": "flex_attention",
}
"""What `transformers` calls a back end, where that differs."""
_VARLEN_MAX_HEAD = 256
_VARLEN_CAPABILITY = (8, 0)


def use_attention(
    model: PreTrainedModel, requested: str, *, device: torch.device, allow_flash_attention: bool = True
) -> Attention:
    """Switch a model to the back end `requested`, or for `auto` to the best that it can use there, and say which.

    Raises `ModelError` where the model, the device or the installed packages cannot do what was asked for by name.
    """
    register_document_attention()
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

"""An adapter merged into its base model, layer by layer in fp32, and the proof that nothing was lost.

In: a `PeftModel` in the precision of training. Out: a plain model in the asked precision. Each layer is brought to
fp32, merged, compared with base and adapter on random inputs, and cast; so only one layer is held in fp32 at a time,
and a wrong merge shows whatever the precision of the result.
"""

from collections.abc import Iterator
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import PreTrainedModel

from llmforge.errors import ModelError

LAYER_TOLERANCE = 1e-4
"""Relative error of a merged layer in fp32: rounding gives about 1e-6."""
_NUM_INPUTS = 8


@torch.no_grad()
def merge_adapter(adapted: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The base model with its adapter in it. Raises `ModelError` where a layer does not compute what it did before."""
    _untie_adapted(adapted)
    for name, layer in _outermost(adapted):
        layer.to(torch.float32)
        inputs = _inputs(layer)
        before = None if inputs is None else layer(inputs)
        _merge(layer, name)
        if inputs is not None and before is not None:
            _compare(name, before, layer(inputs))
        layer.get_base_layer().to(dtype)
    for rows in _token_rows(adapted):
        rows.merge(safe_merge=True)
    merged = cast(PreTrainedModel, adapted.unload()).to(dtype)
    _note_untied(merged)
    return merged


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the length of what is expected, in fp32."""
    expected = expected.float()
    scale = float(expected.norm())
    difference = float((found.float() - expected).norm())
    return difference / scale if scale else difference


def _outermost(adapted: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that hold a part of the adapter; of those that wrap one another the outer one."""
    inside: set[torch.nn.Module] = set()
    for name, module in list(adapted.named_modules()):
        if isinstance(module, LoraLayer) and module not in inside:
            inside.update(module.modules())
            yield name.removeprefix("base_model.model."), module


def _token_rows(adapted: PeftModel) -> list[TrainableTokensLayer]:
    """The parts of the adapter that replace rows of single tokens; one that is tied to another has none of its own."""
    found = (module for module in adapted.modules() if isinstance(module, TrainableTokensLayer))
    return [module for module in found if module.tied_adapter is None]


def _merge(layer: LoraLayer, name: str) -> None:
    try:
        layer.merge(safe_merge=True)
        inner = layer.base_layer
        while isinstance(layer, ParamWrapper) and isinstance(inner, ParamWrapper):
            inner.merge(safe_merge=True)
            inner = inner.base_layer
    except ValueError as error:
        raise ModelError(
            f"{name}: the adapter cannot be merged: {str(error).rstrip('.')}; export it alone with --adapter, or from "
            "another checkpoint"
        ) from error


def _inputs(layer: LoraLayer) -> torch.Tensor | None:
    """Random inputs for layers that take vectors; None for others, which the logits of the whole model prove."""
    if isinstance(layer, ParamWrapper) or isinstance(layer.get_base_layer(), torch.nn.Embedding):
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_NUM_INPUTS, layer.in_features, generator=generator)


def _compare(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    error = relative_error(after, before)
    if not error <= LAYER_TOLERANCE:
        raise ModelError(
            f"{name}: the merged layer differs from base and adapter by {error:.1e} in fp32, allowed is "
            f"{LAYER_TOLERANCE:.0e}; nothing was written. Export the adapter alone with --adapter"
        )


def _untie_adapted(adapted: PeftModel) -> None:
    """Give input and output embeddings weights of their own where the adapter changes one of two that are shared."""
    model = adapted.get_base_model()
    source, output = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    is_tied = getattr(source, "weight", None) is weight
    if not isinstance(weight, torch.Tensor) or not is_tied:
        return
    if isinstance(source, LoraLayer) or isinstance(output, LoraLayer):
        holder = output.get_base_layer() if isinstance(output, LoraLayer) else output
        holder.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)


def _note_untied(model: PreTrainedModel) -> None:
    """Have the configuration say that two embeddings differ which the base model shares."""
    output = model.get_output_embeddings()
    source = model.get_input_embeddings()
    if output is not None and model.config.get_text_config().tie_word_embeddings and output.weight is not source.weight:
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False

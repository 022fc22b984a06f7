"""What a loaded model takes in floating point operations, and what its device can do.

In: a causal language model of `transformers`, bare or with a PEFT adapter, whole, quantized or partitioned by ZeRO 3.
Out: `StepOperations`, whose formulas are in `config/operations.py`. Nothing is computed and no weight is read.

Every matrix but an embedding multiplies each token once, so matrices are counted wherever they stand. Not exact where
a model does otherwise: attention in a window counts as attention to all that comes before; layers below the first
trained weight count with the gradient of their input; DoRA's norm of a weight, which no token enters, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmforge.config.accelerators import accelerator_of_device
from llmforge.config.operations import StepOperations, Weights

_LOOK_UPS = ("lora_embedding_A", "trainable_tokens_delta")
"""Modules of PEFT of whose parameters a token takes one row or none."""


@dataclass(frozen=True)
class _Parameter:
    """One parameter as a module uses it."""

    identity: int
    """The same for a matrix that input and output share."""
    num_weights: int
    """That a token meets: of experts, their active share."""
    is_multiplied: bool
    is_trained: bool
    is_head: bool


@dataclass(frozen=True)
class _Experts:
    """How many experts a layer has, and how many of them a token goes through; 1 of 1 in a dense model."""

    num_all: int = 1
    num_active: int = 1


def count_operations(model: PreTrainedModel) -> StepOperations:
    """The operations of `model` as it stands: what requires a gradient counts as trained."""
    config = model.config.get_text_config()
    parameters = list(_parameters(model, _experts(config)))
    multiplied = [parameter for parameter in parameters if parameter.is_multiplied]
    return StepOperations(
        decoder=_weights(parameter for parameter in multiplied if not parameter.is_head),
        head=_weights(parameter for parameter in multiplied if parameter.is_head),
        num_layers=_num_attention_layers(config),
        attention_width=_attention_width(config),
        num_parameters=sum({parameter.identity: parameter.num_weights for parameter in parameters}.values()),
    )


def peak_operations_per_second(device: torch.device, precision: str) -> float | None:
    """The data sheet's peak of dense matrix products in a job's `precision`; None on a CPU, for a device that is not
    known, and in fp32, where it depends on how many bits the device really multiplies.
    """
    if device.type != "cuda" or precision not in ("bf16", "fp16"):
        return None
    accelerator = accelerator_of_device(torch.cuda.get_device_name(device))
    return None if accelerator is None or accelerator.peak_tflops is None else accelerator.peak_tflops * 1e12


def _parameters(model: PreTrainedModel, experts: _Experts) -> Iterator[_Parameter]:
    output_layer = model.get_output_embeddings()
    head = set() if output_layer is None else set(output_layer.modules())
    # PEFT keeps the module of which it trains a copy, but no token goes through it.
    copied = {
        module
        for wrapper in model.modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
        for module in wrapper.original_module.modules()
    }
    for path, module in model.named_modules():
        if module in copied:
            continue
        parts = path.split(".")
        is_look_up = isinstance(module, nn.Embedding) or parts[-1] in _LOOK_UPS
        for name, parameter in module.named_parameters(recurse=False):
            shape = _shape(module, name, parameter)
            num_weights = math.prod(shape)
            if "experts" in parts or (len(shape) == 3 and shape[0] == experts.num_all):
                num_weights = num_weights * experts.num_active // experts.num_all
            yield _Parameter(
                identity=id(parameter),
                num_weights=num_weights,
                is_multiplied=len(shape) > 1 and not is_look_up,
                is_trained=parameter.requires_grad,
                is_head=module in head,
            )


def _shape(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, also where bitsandbytes packs its numbers or DeepSpeed leaves a rank a part of it."""
    num_inputs, num_outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if name == "weight" and isinstance(num_inputs, int) and isinstance(num_outputs, int):
        return num_outputs, num_inputs
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _weights(parameters: Iterable[_Parameter]) -> Weights:
    sizes = {False: 0, True: 0}
    for parameter in parameters:
        sizes[parameter.is_trained] += parameter.num_weights
    return Weights(frozen=sizes[False], trained=sizes[True])


def _experts(config: PreTrainedConfig) -> _Experts:
    num_all = _first_number(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    num_active = _first_number(config, "num_experts_per_tok", "moe_topk", "moe_k")
    return _Experts() if num_all is None or num_active is None else _Experts(num_all, num_active)


def _attention_width(config: PreTrainedConfig) -> int:
    """Numbers of a token that attention multiplies, all heads together; of queries and values the mean."""
    num_heads = int(config.num_attention_heads)
    query_size, value_size = _first_number(config, "qk_head_dim"), _first_number(config, "v_head_dim")
    if query_size is not None and value_size is not None:  # multi-head latent attention
        return num_heads * (query_size + value_size) // 2
    return num_heads * (_first_number(config, "head_dim") or int(config.hidden_size) // num_heads)


def _num_attention_layers(config: PreTrainedConfig) -> int:
    """Of a hybrid model those whose work grows with the square of the length."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds is None:
        return int(config.num_hidden_layers)
    return sum("attention" in kind and not kind.startswith("linear") for kind in kinds)


def _first_number(config: PreTrainedConfig, *names: str) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)

"""Fused kernels of the Liger package (Hsu et al. 2024) for norms, rotary positions and gated layers.

In: a loaded model without adapter. Out: the same model, its layers computing by Liger's Triton kernels, which need a
GPU; and its fused loss as a function, for the trained positions only. That of the model itself stays off, since it
would take all positions.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature

import torch
from pydantic import JsonValue
from transformers import PreTrainedModel

from llmforge.config.model import LigerKernelConfig
from llmforge.errors import ModelError

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


FusedLoss = Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor]
"""Hidden states (positions, hidden size), an output layer and targets (positions,) to the cross entropy, summed."""


def wants_fused_loss(liger: LigerKernelConfig | None) -> bool:
    """Whether a job asks for Liger's loss."""
    return liger is not None and liger.enabled and bool(liger.kwargs.get("fused_linear_cross_entropy"))


def fused_loss() -> FusedLoss:
    """Liger's fused linear cross entropy. Raises `ModelError` where there is no GPU or package."""
    _check_environment()
    compute = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy

    def loss(hidden: torch.Tensor, layer: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = compute(
            hidden, layer.weight, targets, bias=layer.bias, reduction="sum", accum_dtype=torch.float32
        )
        return summed.float()

    return loss


def apply_liger_kernel(model: PreTrainedModel, given: Mapping[str, JsonValue]) -> None:
    """Replace layers of `model` by Liger's; `given` are arguments of Liger's function for the family.

    Raises `ModelError` where there is no GPU or package, or Liger does not know the model or an argument.
    """
    _check_environment()
    arguments = {name: value for name, value in given.items() if name not in _LOSSES}
    patches = import_module("liger_kernel.transformers.monkey_patch")
    apply = patches.MODEL_TYPE_TO_APPLY_LIGER_FN.get(model.config.model_type)
    if apply is None:
        raise ModelError(
            f"liger_kernel: Liger has no kernels for models of type {model.config.model_type}; set enabled to false"
        )
    allowed = [name for name in signature(apply).parameters if name != "model"]
    unknown = [name for name in arguments if name not in allowed]
    if unknown:
        raise ModelError(
            f"liger_kernel.kwargs: found {', '.join(unknown)}, allowed for {model.config.model_type}: "
            f"{', '.join(name for name in allowed if name not in _LOSSES)}"
        )
    apply(model=model, **{name: False for name in _LOSSES if name in allowed}, **arguments)


def _check_environment() -> None:
    if not torch.cuda.is_available():
        raise ModelError("liger_kernel: needs a GPU, and there is none here; set enabled to false")
    for package in ("triton", "liger_kernel"):
        if find_spec(package) is None:
            raise ModelError(
                f"liger_kernel: needs the package {package}, which is not installed here; "
                "pip install llmforge[liger] on every node, or set enabled to false"
            )

"""Fused kernels of the Liger package (Hsu et al. 2024) for norms, rotary positions and gated layers.

In: a loaded model without adapter. Out: the same model, its layers computing by Liger's Triton kernels, which need a
GPU. Liger's own losses stay off: llmforge computes the loss itself, at trained positions only.
"""

from importlib import import_module
from importlib.util import find_spec
from inspect import signature

import torch
from pydantic import JsonValue
from transformers import PreTrainedModel

from llmforge.errors import ModelError

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def apply_liger_kernel(model: PreTrainedModel, arguments: dict[str, JsonValue]) -> None:
    """Replace layers of `model` by Liger's; `arguments` are those of Liger's function for the family.

    Raises `ModelError` where there is no GPU or package, or Liger does not know the model or an argument.
    """
    _check_environment()
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

"""Base weights in 4 or 8 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes.

In: what a job says of quantization. Out: the settings with which `transformers` loads a model, and what is to be done
once it is loaded, with a warning of what stays whole. The output layer, embeddings and norms are never quantized, and
stay in the job's precision: PEFT's `prepare_model_for_kbit_training` would bring them to fp32, which DeepSpeed undoes
and which the logits would pay for; norms compute in fp32 anyway. Whatever is quantized is frozen, and the adapter
beside it is not quantized.
"""

import logging
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from llmforge.config.model import QuantizationConfig
from llmforge.errors import ModelError

_LOG = logging.getLogger(__name__)
_LAYS_OUT_ANEW = "support_avx512bf16_for_cpu"
"""What bitsandbytes' layers of 4 bits ask before they do so."""


def bitsandbytes_config(quantization: QuantizationConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How `transformers` quantizes while it loads; products are computed in `dtype`.

    Raises `ModelError` where the package is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "quantization: needs the package bitsandbytes, which is not installed here; "
            "pip install llmforge[quantization] on every node, or remove the key"
        )
    # It warns at every layer and step that 8 bit inputs pass through fp16, which is how the method works.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type or "nf4",
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_layout(model: PreTrainedModel) -> None:
    """Let weights in 4 bits stay as they were loaded.

    On processors with AVX512-BF16 bitsandbytes 0.50 lays them out anew at the first evaluation, with rounded scales:
    for good, and no gradient passes through them from then on, while a run that evaluates goes on training.
    """
    for module in model.modules():
        if hasattr(module, _LAYS_OUT_ANEW):
            setattr(module, _LAYS_OUT_ANEW, False)


def warn_of_whole_weights(model: PreTrainedModel) -> None:
    """Say so where a model holds experts as single parameters, which bitsandbytes leaves in the job's precision."""
    whole = [(name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.dim() > 2]
    if whole:
        _LOG.warning(
            "quantization: %d parameters such as %s, %.1f billion numbers, are no linear layers and stay in the job's "
            "precision",
            len(whole),
            whole[0][0],
            sum(size for _, size in whole) / 1e9,
        )

"""Tokenizer and base model as objects of `transformers`.

In: local folders (`llmforge.models.folder` finds them). Out: loaded objects. It does not know where they will be
trained. Loading failures become `ModelError`s that name the folder and what to do.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.model import QuantizationConfig
from llmforge.errors import ModelError
from llmforge.models.folder import read_tokenizer_json
from llmforge.models.quantized import bitsandbytes_config, keep_layout, warn_of_whole_weights

Precision = Literal["bf16", "fp16", "fp32"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as `tokenizer.json` stands.

    `AutoTokenizer` may rebuild the pipeline from `tokenizer_class` and then gives other ids than the model was trained
    with.
    """
    read_tokenizer_json(folder)  # for its errors
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def load_base_model(
    architecture: Path,
    weights: Path,
    *,
    precision: Precision,
    quantization: QuantizationConfig | None = None,
) -> PreTrainedModel:
    """A causal language model: architecture from one folder, weights from another (or the same).

    With `quantization` its linear layers but the output layer are held in few bits. Raises `ModelError` where the
    weights are missing or do not fit the architecture, or the package for few bits is missing.
    """
    config = _load_config(architecture)
    few_bits = None if quantization is None else bitsandbytes_config(quantization, DTYPES[precision])
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=config,
            dtype=DTYPES[precision],
            quantization_config=few_bits,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in words of our own
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{weights}: the weights cannot be loaded as {config.model_type}: {_first_line(error)}"
        ) from error
    _check_weights(info, architecture, weights)
    loaded: PreTrainedModel = model
    if quantization is not None:
        keep_layout(loaded)
        warn_of_whole_weights(loaded)
    return loaded


def _load_config(folder: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no architecture can be read from config.json: {_first_line(error)}") from error
    return config


def _check_weights(info: dict[str, Any], architecture: Path, weights: Path) -> None:
    """Refuse weights of another shape, too few, and, from another folder than the architecture, too many."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise ModelError(
            f"{weights}: {len(mismatched)} weights have another shape than in {architecture}, the first is {name}: "
            f"{tuple(found)}, expected {tuple(expected)}; name weights of the same architecture"
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise ModelError(f"{weights}: {len(missing)} weights are missing for {architecture}, the first is {missing[0]}")
    if unexpected and architecture != weights:
        raise ModelError(
            f"{weights}: {len(unexpected)} weights have no place in {architecture}, the first is {unexpected[0]}; "
            "name weights of the same architecture"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

"""Tokenizer, base model and adapter as objects of `transformers` and `peft`.

In: local folders (`llmforge.models.folder` finds them). Out: loaded objects. It does not know where they will be
trained. Loading failures become `ModelError`s that name the folder and what to do.
"""

from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError

Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["sdpa", "eager"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as `tokenizer.json` stands.

    `AutoTokenizer` may rebuild the pipeline from `tokenizer_class` and then gives other ids than the model was trained
    with.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: no tokenizer.json; llmforge needs the model's fast tokenizer")
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def load_base_model(
    architecture: Path, weights: Path, *, precision: Precision, attention: Attention
) -> PreTrainedModel:
    """A causal language model: architecture from one folder, weights from another (or the same).

    Raises `ModelError` where the weights are missing or do not fit the architecture.
    """
    config = AutoConfig.from_pretrained(architecture)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=config,
            dtype=DTYPES[precision],
            attn_implementation=attention,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{weights}: the weights cannot be loaded as {config.model_type}: {_first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{weights}: {len(missing)} weights are missing for {architecture}, the first is {missing[0]}")
    loaded: PreTrainedModel = model
    return loaded


def add_adapter(model: PreTrainedModel, lora: LoraConfig, base_name: str) -> PeftModel:
    """Put a fresh LoRA adapter on a base model; only the adapter is trainable then."""
    arguments = lora.model_dump(exclude_none=True)
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    try:
        peft_model = get_peft_model(model, PeftLoraConfig(**{**arguments, "task_type": "CAUSAL_LM"}))
    except ValueError as error:
        raise ModelError(
            f"lora_config.target_modules: {_first_line(error)}; the layers of this model are "
            f"{', '.join(linear_layer_names(model))}, or write all-linear"
        ) from error
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    adapted: PeftModel = peft_model
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool) -> PeftModel:
    """Put a saved adapter on a base model. Raises `ModelError` where it was made for another base."""
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: no adapter_config.json; expected a LoRA adapter as PEFT saves it")
    try:
        adapted: PeftModel = PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{folder}: the adapter does not fit the base model: {_explain(error)}") from error
    return adapted


def linear_layer_names(model: torch.nn.Module) -> list[str]:
    """Last part of the name of every linear layer, without repetition."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names)


def _explain(error: Exception) -> str:
    """The first line that names a tensor, where there is one: `Error(s) in loading ...` alone says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else repr(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

"""Tokenizer, base model and adapter as objects of `transformers` and `peft`.

In: local folders (`llmforge.models.folder` finds them). Out: loaded objects. It does not know where they will be
trained. Loading failures become `ModelError`s that name the folder and what to do.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.models.folder import read_tokenizer_json

Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["sdpa", "eager"]

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
    architecture: Path, weights: Path, *, precision: Precision, attention: Attention
) -> PreTrainedModel:
    """A causal language model: architecture from one folder, weights from another (or the same).

    Raises `ModelError` where the weights are missing or do not fit the architecture.
    """
    config = _load_config(architecture)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            weights,
            config=config,
            dtype=DTYPES[precision],
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in words of our own
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{weights}: the weights cannot be loaded as {config.model_type}: {_first_line(error)}"
        ) from error
    _check_weights(info, architecture, weights)
    loaded: PreTrainedModel = model
    return loaded


def add_adapter(model: PreTrainedModel, lora: LoraConfig, base_name: str) -> PeftModel:
    """Put a fresh LoRA adapter on a base model; only the adapter is trainable then.

    Raises `ModelError` where `lora` names layers that the model does not have.
    """
    _check_layer_names(model, "target_modules", lora.target_modules)
    _check_layer_names(model, "modules_to_save", lora.modules_to_save)
    arguments = lora.model_dump(exclude_none=True)
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    try:
        with _peft_quiet():
            peft_model = get_peft_model(model, PeftLoraConfig(**{**arguments, "task_type": "CAUSAL_LM"}))
    except ValueError as error:
        raise ModelError(f"lora_config: {_first_line(error).rstrip('.')}; {_layers_there(model)}") from error
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    adapted: PeftModel = peft_model
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool) -> PeftModel:
    """Put a saved adapter on a base model. Raises `ModelError` where it was made for another base."""
    for name in ("adapter_config.json", SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; expected a LoRA adapter as PEFT saves it")
    try:
        with _peft_quiet():
            adapted: PeftModel = PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter does not fit the base model: {_explain(error)}") from error
    _check_adapter_weights(adapted, folder)
    return adapted


@contextmanager
def _peft_quiet() -> Iterator[None]:
    """Without a warning that is not the user's to heed: peft 0.21 reads a name that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def linear_layer_names(model: torch.nn.Module) -> list[str]:
    """Last part of the name of every linear layer, without repetition."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names)


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


def _check_layer_names(model: PreTrainedModel, key: str, names: str | tuple[str, ...] | None) -> None:
    """PEFT passes over a name in a list that no layer has, as long as another one fits."""
    if names is None or isinstance(names, str):
        return
    layers = [name for name, _ in model.named_modules()]
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    if unknown:
        raise ModelError(f"lora_config.{key}: no layer is called {', '.join(unknown)}; {_layers_there(model)}")


def _layers_there(model: PreTrainedModel) -> str:
    names = ", ".join(linear_layer_names(model))
    return f"the linear layers of this model are {names}; all-linear means all but the output layer"


def _check_adapter_weights(adapted: PeftModel, folder: Path) -> None:
    """PEFT only warns of weights that the file lacks, and passes over those for which the model has no place."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    missing, unexpected = sorted(expected - saved), sorted(name for name in saved - expected if ".lora_" in name)
    for names, problem in ((missing, "it lacks"), (unexpected, "the base model has no place for")):
        if names:
            raise ModelError(
                f"{folder}: the adapter was made for another base model: {problem} {len(names)} weights, "
                f"the first is {names[0]}"
            )


def _explain(error: Exception) -> str:
    """The first line that names a tensor, where there is one: `Error(s) in loading ...` alone says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else repr(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

"""Saved LoRA adapters: loaded, continued, and written so that they fit the base model as it was published.

In: a base model and the folder of an adapter. Out: a `PeftModel`, or files in PEFT's layout.

PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) start with a part `s B0 A0` of the base weights `W`, which they
take out of them: what trains is `W - s B0 A0 + s B A`. The saved adapter is the difference to `W`, `s (B A - B0 A0)`,
written as one of twice the rank, `A' = [A; A0]` and `B' = [B, -B0]` (PEFT calls this conversion): any program can load
it over the published base. Since both halves stand in it, the training that wrote it goes on from it exactly.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.models.adapter import adapted_layers, add_adapter, peft_config_of, peft_quiet
from llmforge.models.vocabulary import make_room

CONFIG_FILE = "adapter_config.json"
_COMPARED = (
    "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "modules_to_save", "target_parameters", "trainable_token_indices",
)  # fmt: skip
_START_A, _START_B = "start_of_lora_A", "start_of_lora_B"
"""Buffers of a layer whose base weight has given a part to the adapter."""


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool) -> PeftModel:
    """Put a saved adapter on a base model. Raises `ModelError` where it was made for another base."""
    _check_files(folder)
    return _load(model, folder, _read_config(folder), is_trainable=is_trainable)


def add_saved_adapter(adapted: PeftModel, folder: Path, name: str) -> None:
    """Load one more adapter beside the first, to be chosen by `name`. Raises `ModelError` as `load_adapter` does."""
    _check_files(folder)
    if _new_token_ids(_read_config(folder)) or _new_token_ids(adapted.peft_config["default"]):
        raise ModelError(
            f"{folder}: found new tokens of the vocabulary, in this adapter or in the first; allowed are adapters for "
            "the tokens of the base model; serve it in a process of its own"
        )
    try:
        with peft_quiet():
            adapted.load_adapter(folder, name, is_trainable=False)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter does not fit the base model: {_explain(error)}") from error
    _check_adapter_weights(adapted, folder, name)


def continue_adapter(model: PreTrainedModel, lora: LoraConfig, folder: Path, base_name: str) -> PeftModel:
    """Put a saved adapter on a base model and train it on, with the job's dropout.

    Raises `ModelError` where it was made for another base, or `lora` describes another adapter.
    """
    _check_files(folder)
    found = _read_config(folder)
    config = peft_config_of(model, lora)
    differences = _differences(model, config, found)
    if differences:
        raise ModelError(
            f"{folder}: the adapter is another one than lora_config describes: {'; '.join(differences)}; "
            "write the adapter's own values into lora_config (lora_dropout is free)"
        )
    config.base_model_name_or_path = base_name
    return _load(model, folder, config, is_trainable=True)


def resume_adapter(model: PreTrainedModel, lora: LoraConfig, folder: Path) -> PeftModel:
    """Put the adapter of a checkpoint on a base model as its training left it, for the same training to go on."""
    if not lora.changes_base:
        return load_adapter(model, folder, is_trainable=True)
    _check_files(folder)
    saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    plain = lora.model_copy(update={"init_lora_weights": True})
    config = _read_config(folder)
    adapted = add_adapter(model, plain, str(config.base_model_name_or_path), _new_token_ids(config))
    adapted.peft_config["default"].init_lora_weights = lora.init_lora_weights
    for name, layer in _lora_layers(adapted):
        rank, scaling = layer.r["default"], layer.scaling["default"]
        key_a, key_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        start_a, start_b = saved[key_a][rank:].contiguous(), -saved[key_b][:, rank:].contiguous()
        saved[key_a], saved[key_b] = saved[key_a][:rank].contiguous(), saved[key_b][:, :rank].contiguous()
        weight = layer.get_base_layer().weight
        # The same operations as PEFT's, so that the remainder is the same to the last bit.
        weight.data = (weight.data.float() - scaling * start_b @ start_a).to(weight.dtype)
        _remember(layer, start_a, start_b)
    set_peft_model_state_dict(adapted, saved)
    return adapted


def start_adapter(
    model: PreTrainedModel, lora: LoraConfig, base_name: str, new_token_ids: Sequence[int] = ()
) -> PeftModel:
    """A fresh adapter that `save_adapter` can write: see `add_adapter`."""
    adapted = add_adapter(model, lora, base_name, new_token_ids)
    for _, layer in _lora_layers(adapted) if lora.changes_base else ():
        _remember(layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    return adapted


def save_adapter(adapted: PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write trained weights (by their names in the model) as an adapter for the base model as it was published."""
    starts = {name: layer for name, layer in _lora_layers(adapted) if hasattr(layer, _START_A)}
    whole = _with_shared(adapted, weights)
    if not starts:
        # Whole embeddings are never part of an adapter; left to itself PEFT asks the hub about the base model's.
        adapted.save_pretrained(folder, state_dict=whole, save_embedding_layers=False)
        return
    for name, layer in starts.items():
        key_a, key_b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
        whole[key_a] = torch.cat([weights[key_a].float(), getattr(layer, _START_A).cpu()])
        whole[key_b] = torch.cat([weights[key_b].float(), -getattr(layer, _START_B).cpu()], dim=1)
    tensors = get_peft_model_state_dict(adapted, state_dict=whole, save_embedding_layers=False)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / SAFETENSORS_WEIGHTS_NAME)
    _of_twice_the_rank(adapted.peft_config["default"]).save_pretrained(folder)


def _with_shared(adapted: PeftModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With every name of a parameter that stands in several places, as PEFT wants them."""
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return {name: weights[same[0]].clone() for same in names.values() for name in same if same[0] in weights}


def _of_twice_the_rank(config: PeftLoraConfig) -> PeftLoraConfig:
    """With the same scaling: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA."""
    factor = 2**0.5 if config.use_rslora else 2
    doubled = copy.copy(config)
    doubled.inference_mode, doubled.init_lora_weights = True, True
    doubled.r, doubled.lora_alpha = 2 * config.r, factor * config.lora_alpha
    doubled.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    doubled.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    return doubled


def _lora_layers(adapted: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    return (
        (name, module)
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer) and "default" in module.lora_A
    )


def _remember(layer: LoraLayer, start_a: torch.Tensor, start_b: torch.Tensor) -> None:
    # No part of the state: buffers keep their precision where DeepSpeed brings the weights to 16 bits.
    layer.register_buffer(_START_A, start_a.detach().float().clone(), persistent=False)
    layer.register_buffer(_START_B, start_b.detach().float().clone(), persistent=False)


def _load(model: PreTrainedModel, folder: Path, config: PeftLoraConfig, *, is_trainable: bool) -> PeftModel:
    make_room(model, _new_token_ids(config), like_others=False)
    try:
        with peft_quiet():
            adapted: PeftModel = PeftModel.from_pretrained(model, folder, is_trainable=is_trainable, config=config)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter does not fit the base model: {_explain(error)}") from error
    _check_adapter_weights(adapted, folder)
    return adapted


def _new_token_ids(config: PeftLoraConfig) -> list[int]:
    """Tokens that an adapter has rows of the output layer for, as `add_adapter` writes them."""
    indices = config.trainable_token_indices
    return sorted({number for numbers in indices.values() for number in numbers}) if isinstance(indices, dict) else []


def _check_files(folder: Path) -> None:
    for name in (CONFIG_FILE, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; expected a LoRA adapter as PEFT saves it")


def _read_config(folder: Path) -> PeftLoraConfig:
    """Raises `ModelError` where it is not a LoRA adapter for the base model as it was published."""
    try:
        config = PeftConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{folder}: the adapter does not fit the base model: {_explain(error)}") from error
    if not isinstance(config, PeftLoraConfig):
        raise ModelError(f"{folder}: found an adapter of peft_type {config.peft_type}, allowed is LORA")
    init = config.init_lora_weights
    if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ModelError(
            f"{folder}: the adapter was saved with init_lora_weights {init}, so it fits a base model that was changed "
            "before training and not the published one; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    return config


def _differences(model: PreTrainedModel, asked: PeftLoraConfig, found: PeftLoraConfig) -> list[str]:
    there = {key: _comparable(getattr(found, key)) for key in _COMPARED}
    here = {key: _comparable(getattr(asked, key)) for key in _COMPARED}
    differences = [
        f"{key} is {there[key]} there and {here[key]} in lora_config" for key in _COMPARED if there[key] != here[key]
    ]
    layers_there, layers_here = adapted_layers(model, found), adapted_layers(model, asked)
    for only, holder in ((layers_there - layers_here, "the adapter"), (layers_here - layers_there, "lora_config")):
        if only:
            differences.append(f"only {holder} has {len(only)} layers such as {min(only)}")
    return differences


def _comparable(value: object) -> object:
    """Lists in any order; nothing given is the same as nothing in it."""
    if isinstance(value, list | tuple | set):
        return sorted(value, key=str) or None
    return value or None if isinstance(value, dict) else value


def _check_adapter_weights(adapted: PeftModel, folder: Path, name: str = "default") -> None:
    """PEFT only warns of weights that the file lacks, and passes over those for which the model has no place."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False))
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

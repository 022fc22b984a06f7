"""LoRA adapters on a base model: a fresh one, and one that continues a saved one.

In: a loaded base model and what a job says of LoRA. Out: a `PeftModel` of which only the adapter is trainable.
`all-linear` is resolved here and not by PEFT, which would also adapt the routers of a mixture of experts: a router that
learns may send tokens to other experts than those that the base model has trained for them.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError

_LOG = logging.getLogger(__name__)
ALL_LINEAR = "all-linear"
_ROUTERS = ("gate", "router", "shared_expert_gate")
_EXPERT_LAYERS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""PEFT takes these names for the experts' where a model holds experts as parameters."""


def add_adapter(
    model: PreTrainedModel, lora: LoraConfig, base_name: str, new_token_ids: Sequence[int] = ()
) -> PeftModel:
    """Put a fresh LoRA adapter on a base model; only the adapter is trainable then.

    The rows of `new_token_ids` in the output layer are part of it. Raises `ModelError` where `lora` names layers or
    parameters that the model does not have.
    """
    _check_layer_names(model, "target_modules", lora.target_modules)
    _check_layer_names(model, "modules_to_save", lora.modules_to_save)
    _check_expert_names(model, lora.target_modules)
    _check_parameter_names(model, lora.target_parameters)
    try:
        with peft_quiet():
            # A key that reaches no layer is a mistake; PEFT goes on without it.
            warnings.filterwarnings("error", ".* did not match any targeted module", RuntimeWarning)
            warnings.filterwarnings("error", "You have passed exclude_modules", UserWarning)
            adapted: PeftModel = get_peft_model(model, peft_config_of(model, lora, new_token_ids))
    except (ValueError, RuntimeWarning, UserWarning) as error:
        raise ModelError(f"lora_config: {first_line(error).rstrip('.')}; {_layers_there(model)}") from error
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def peft_config_of(model: PreTrainedModel, lora: LoraConfig, new_token_ids: Sequence[int] = ()) -> PeftLoraConfig:
    """PEFT's configuration for an adapter on this model."""
    arguments = lora.model_dump(exclude_none=True)
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    if lora.target_modules == ALL_LINEAR:
        arguments["target_modules"] = _all_linear(model)
    if lora.target_modules is None:
        arguments["target_modules"] = []  # where nothing is said PEFT adds layers of its own choice
    if new_token_ids:
        arguments["trainable_token_indices"] = {_output_layer_name(model): list(new_token_ids)}
    return PeftLoraConfig(**{**arguments, "task_type": "CAUSAL_LM"})


def adapted_layers(model: PreTrainedModel, config: PeftLoraConfig) -> set[str]:
    """Names of the modules of a base model that an adapter of this configuration changes."""
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


def linear_layer_names(model: torch.nn.Module) -> list[str]:
    """Last part of the name of every linear layer, without repetition."""
    return sorted({name.rpartition(".")[2] for name in _linear_layers(model)})


def first_line(error: Exception) -> str:
    """Of a library's message, which often goes on with all that it tried."""
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def peft_quiet() -> Iterator[None]:
    """Without a warning that is not the user's to heed: peft 0.21 reads a name that transformers 5.23 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _output_layer_name(model: PreTrainedModel) -> str:
    output = model.get_output_embeddings()
    names: dict[torch.nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[output]


def _linear_layers(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]


def _all_linear(model: PreTrainedModel) -> list[str]:
    """All linear layers but the output layer and routers; where experts are parameters also without those that share
    a name with what experts once were, since PEFT would adapt the experts instead.
    """
    output = model.get_output_embeddings()
    layers = {name.rpartition(".")[2] for name in _linear_layers(model) if model.get_submodule(name) is not output}
    experts = _experts(model)
    names = layers - set(_ROUTERS)
    if experts:
        names -= set(_EXPERT_LAYERS)
        _LOG.warning(
            "lora_config: target_modules all-linear means %s for this model; its experts are parameters and get no "
            "adapter unless target_parameters names them: %s",
            ", ".join(sorted(names)),
            ", ".join(experts),
        )
    return sorted(names)


def _experts(model: PreTrainedModel) -> list[str]:
    """Endings of the names of parameters that hold all experts of a layer."""
    return sorted({_ending(name) for name, parameter in model.named_parameters() if parameter.dim() == 3})


def _check_expert_names(model: PreTrainedModel, names: str | tuple[str, ...] | None) -> None:
    experts = _experts(model)
    found = [name for name in names or () if name.rpartition(".")[2] in _EXPERT_LAYERS]
    if experts and found and not isinstance(names, str):
        raise ModelError(
            f"lora_config.target_modules: found {', '.join(found)}, which PEFT takes for the experts of this model; "
            f"remove it, and to adapt the experts name them in target_parameters: {', '.join(experts)}"
        )


def _ending(name: str) -> str:
    """Of a parameter's name, the part behind the number of its layer."""
    parts = name.split(".")
    return ".".join(parts[max((i for i, part in enumerate(parts) if part.isdigit()), default=-1) + 1 :])


def _check_layer_names(model: PreTrainedModel, key: str, names: str | tuple[str, ...] | None) -> None:
    """PEFT passes over a name in a list that no layer has, as long as another one fits."""
    if names is None or isinstance(names, str):
        return
    unknown = _without_match(names, [name for name, _ in model.named_modules()])
    if unknown:
        raise ModelError(f"lora_config.{key}: no layer is called {', '.join(unknown)}; {_layers_there(model)}")


def _check_parameter_names(model: PreTrainedModel, names: tuple[str, ...] | None) -> None:
    parameters = [name for name, _ in model.named_parameters()]
    unknown = _without_match(names or (), parameters)
    if unknown:
        endings = ", ".join(sorted({_ending(name) for name in parameters}))
        raise ModelError(
            f"lora_config.target_parameters: no parameter is called {', '.join(unknown)}; this model has {endings}"
        )


def _without_match(names: Iterable[str], existing: list[str]) -> list[str]:
    """Those that no existing name ends with."""
    return [name for name in names if not any(f".{other}".endswith(f".{name}") for other in existing)]


def _layers_there(model: PreTrainedModel) -> str:
    names = ", ".join(linear_layer_names(model))
    return f"the linear layers of this model are {names}; all-linear means all but the output layer"

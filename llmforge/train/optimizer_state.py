"""The state of an optimizer under DeepSpeed: taken, given back, and forgotten.

In: a DeepSpeed engine. Out: plain named tensors. It does not know files, checkpoints, batches or losses.

State is taken and given back per parameter, in full and in fp32, through DeepSpeed's `safe_get_full_*` interface, and
not by DeepSpeed's own checkpoints: those are pickles that fit one ZeRO stage and one number of workers only. Every
function is collective: all ranks call it, in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from llmforge.train.quantized_state import Fragment, State, is_quantized, restore_partitions, take_partitions

MASTER_WEIGHT = "fp32_weight"
"""Key of the full-precision copy of a weight beside the optimizer's own states."""
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class OptimizerState:
    """What resuming needs beside the weights."""

    tensors: dict[str, torch.Tensor]
    """`<parameter>|<state>` to the full tensor, in fp32 on the CPU: this rank's share, or all of them to restore."""
    num_updates: float
    """The optimizer's own step count (Adam's bias correction)."""
    loss_scaler: dict[str, float]
    """State of fp16's dynamic loss scale; empty otherwise."""


def take_optimizer_state(engine: DeepSpeedEngine) -> OptimizerState:
    """This rank's share of the state: every rank takes the parameters whose turn it is, so that all share the
    writing.
    """
    _link_optimizer_state(engine)
    tensors: dict[str, torch.Tensor] = {}
    for index, (name, parameter) in enumerate(trainable_parameters(engine)):
        for key in _state_keys(engine, parameter):
            tensor = _get(engine, parameter, key)
            if index % dist.get_world_size() == dist.get_rank():
                tensors[f"{name}|{key}"] = tensor.detach().float().cpu().clone()
    if is_quantized(_inner_optimizer(engine)) and _shard(engine) == dist.get_rank():
        tensors |= take_partitions(_shard(engine), _partition_states(engine), _fragments(engine))
    return OptimizerState(tensors, _num_updates(engine), loss_scaler_fields(engine))


def restore_optimizer_state(engine: DeepSpeedEngine, state: OptimizerState, device: torch.device) -> None:
    """Go on exactly where `state` was taken; the model must have been built from the weights saved with it.

    `state.tensors` holds those of all ranks, whatever the number of workers that wrote them. State in 8 bits is exact
    for the same number of workers and the same ZeRO stage, and rounded once more for others.
    """
    had_updates = any(not name.endswith(f"|{MASTER_WEIGHT}") for name in state.tensors)
    if had_updates:
        _make_optimizer_state_exist(engine)
    _link_optimizer_state(engine)
    for name, parameter in trainable_parameters(engine):
        for key in _state_keys(engine, parameter):
            _set(engine, parameter, key, state.tensors[f"{name}|{key}"].to(device))
    inner = _inner_optimizer(engine)
    if had_updates and is_quantized(inner):
        restore_partitions(state.tensors, _shard(engine), _partition_states(engine), _fragments(engine))
    for values in inner.state.values():
        if isinstance(values.get("step"), torch.Tensor):
            values["step"].fill_(state.num_updates)
        elif "step" in values:
            values["step"] = int(state.num_updates)
    _set_loss_scaler(engine, state.loss_scaler)


def forget_optimizer_state(engine: DeepSpeedEngine, loss_scaler: dict[str, float]) -> None:
    """Bring the state back to what it is before the first step, after a step that changed no weight.

    `loss_scaler` is what `loss_scaler_fields` gave before that step.
    """
    _inner_optimizer(engine).state.clear()
    for _, parameter in trainable_parameters(engine):
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            mapping.optim_fragment = None  # else the forgotten tensors stay in memory
    _set_loss_scaler(engine, loss_scaler)


def loss_scaler_fields(engine: DeepSpeedEngine) -> dict[str, float]:
    """State of fp16's dynamic loss scale."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {field: getattr(scaler, field) for field in SCALER_FIELDS if hasattr(scaler, field)}


def trainable_parameters(engine: DeepSpeedEngine) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Those that are trained, in the order of the model and by its names, without those of the loss around it."""
    return ((name, p) for name, p in engine.module.model.named_parameters() if p.requires_grad)


def _make_optimizer_state_exist(engine: DeepSpeedEngine) -> None:
    """A step of the optimizer alone with zero gradients and zero learning rate: only a first step lays out state."""
    inner = _inner_optimizer(engine)
    kept = [(group["params"], group["lr"]) for group in inner.param_groups]
    gradients = []
    for group, partitions in zip(inner.param_groups, _partitions(engine), strict=True):
        group["params"], group["lr"] = partitions, 0.0
        for partition in partitions:
            gradients.append((partition, partition.grad))
            partition.grad = torch.zeros_like(partition)
    inner.step()
    for partition, gradient in gradients:
        partition.grad = gradient
    for group, (parameters, learning_rate) in zip(inner.param_groups, kept, strict=True):
        group["params"], group["lr"] = parameters, learning_rate


def _partitions(engine: DeepSpeedEngine) -> list[list[torch.Tensor]]:
    """What this rank's optimizer updates, by parameter group: whole parameters, or one part of all of them in a row."""
    groups = _inner_optimizer(engine).param_groups
    if engine.zero_optimization_stage() < 3:
        return [group["params"] for group in groups]
    zero = engine.optimizer  # it shows the inner optimizer its partitions only while that takes a step
    partitions: list[list[torch.Tensor]] = [[] for _ in groups]
    for index, partition in enumerate(zero.fp32_partitioned_groups_flat):
        partitions[zero.sub_group_to_group_id[index]].append(partition)
    return partitions


def _link_optimizer_state(engine: DeepSpeedEngine) -> None:
    """Tell every parameter where its optimizer state is.

    ZeRO 1 and 2 do so after the first parameter group's first step, when the state of the other groups does not
    exist yet.
    """
    inner = _inner_optimizer(engine)
    for _, parameter in trainable_parameters(engine):
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            partition = inner.param_groups[mapping.param_group_index]["params"][0]
            mapping.set_optim_state_fragment(partition, inner.state[partition])


def _inner_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    return cast(torch.optim.Optimizer, getattr(engine.optimizer, "optimizer", engine.optimizer))


def _state_keys(engine: DeepSpeedEngine, parameter: torch.nn.Parameter) -> list[str]:
    """Names of a parameter's tensors: the optimizer's, and the master weight where the model is in low precision."""
    inner = _inner_optimizer(engine)
    if not _is_under_zero(parameter):
        states: dict[str, object] = inner.state.get(parameter, {})
    else:
        states = next(iter(inner.state.values()), {})
    keys = sorted(key for key, value in states.items() if isinstance(value, torch.Tensor) and value.dim() > 0)
    keys = [] if is_quantized(inner) else keys
    return keys if parameter.dtype == torch.float32 else [*keys, MASTER_WEIGHT]


def _get(engine: DeepSpeedEngine, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
    if not _is_under_zero(parameter):
        return cast(torch.Tensor, _inner_optimizer(engine).state[parameter][key])
    if key == MASTER_WEIGHT:
        return cast(torch.Tensor, safe_get_full_fp32_param(parameter))
    return cast(torch.Tensor, safe_get_full_optimizer_state(parameter, key))


def _set(engine: DeepSpeedEngine, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
    if not _is_under_zero(parameter):
        _inner_optimizer(engine).state[parameter][key].copy_(value)
    elif key == MASTER_WEIGHT:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _partition_states(engine: DeepSpeedEngine) -> list[State]:
    inner = _inner_optimizer(engine)
    return [inner.state[partition] for group in _partitions(engine) for partition in group]


def _fragments(engine: DeepSpeedEngine) -> dict[str, Fragment]:
    """Parameter to its piece in this rank's partitions; without those that have none here."""
    numbers = {id(p): i for i, p in enumerate(partition for group in _partitions(engine) for partition in group)}
    found = {name: _fragment(engine, parameter, numbers) for name, parameter in trainable_parameters(engine)}
    return {name: fragment for name, fragment in found.items() if fragment is not None and fragment.numel > 0}


def _fragment(engine: DeepSpeedEngine, parameter: torch.nn.Parameter, numbers: dict[int, int]) -> Fragment | None:
    if not _is_under_zero(parameter):
        return Fragment(numbers[id(parameter)], 0, 0, parameter.numel())
    zero = engine.optimizer
    whole: int | None = getattr(parameter, "ds_numel", None)  # under stage 3
    if whole is not None:
        group, start, numel = zero.grad_position[zero.get_param_id(parameter)]
        before = numel * dist.get_rank()
        partition = zero.fp32_partitioned_groups_flat[group]
        return Fragment(numbers[id(partition)], start, before, min(numel, whole - before))
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    partition = _inner_optimizer(engine).param_groups[mapping.param_group_index]["params"][0]
    piece, place = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Fragment(numbers[id(partition)], piece.start, place.start, piece.numel)


def _shard(engine: DeepSpeedEngine) -> int:
    """Number of this rank's state among those that differ."""
    return dist.get_rank() if engine.zero_optimization_stage() > 0 else 0


def _num_updates(engine: DeepSpeedEngine) -> float:
    states: dict[str, float] = next(iter(_inner_optimizer(engine).state.values()), {})
    return float(states.get("step", 0))


def _set_loss_scaler(engine: DeepSpeedEngine, fields: dict[str, float]) -> None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None:  # ZeRO 1 to 3 have one, that of fp32 and bf16 never changes
        for field, value in fields.items():
            setattr(scaler, field, value)


def _is_under_zero(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")

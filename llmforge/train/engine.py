"""One optimizer step over one global batch, by DeepSpeed; and the state that lets a run go on exactly.

In: a model, an optimizer, a resolved DeepSpeed configuration, and micro-batches. Out: losses, gradients' norm, weights
and optimizer state as plain named tensors. It does not know data, files of a checkpoint, YAML or Ray.

State is taken and given back per parameter, in full and in fp32, through DeepSpeed's `safe_get_full_*` interface, and
not by DeepSpeed's own checkpoints: those are pickles that fit one ZeRO stage and one number of workers only.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from llmforge.train.batches import EMPTY_SAMPLE, Batch, StepBatches, collate
from llmforge.train.losses import LossFunction

MASTER_WEIGHT = "fp32_weight"
"""Key of the full-precision copy of a weight beside the optimizer's own states."""
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float
    """Mean over the trained tokens of the global batch, in nats."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_trained_tokens: int
    num_tokens: int
    notice: int = 0
    """The number that rank 0 gave to the step."""


@dataclass(frozen=True)
class OptimizerState:
    """What resuming needs beside the weights."""

    tensors: dict[str, torch.Tensor]
    """`<parameter>|<state>` to the full tensor, in fp32 on the CPU: this rank's share, or all of them to restore."""
    num_updates: float
    """The optimizer's own step count (Adam's bias correction)."""
    loss_scaler: dict[str, float]
    """State of fp16's dynamic loss scale; empty otherwise."""


class TrainingEngine:
    """A model under DeepSpeed. Every method is collective: all ranks call it, in the same order."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        deepspeed_config: dict[str, Any],
        device: torch.device,
    ) -> None:
        # Else DeepSpeed compiles a C++ helper for CPU collectives at the first start: a minute, and a compiler needed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
        self._engine = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config)[0]
        self.device = device
        self.rank = dist.get_rank()
        self.num_workers = dist.get_world_size()

    @property
    def num_trained_parameters(self) -> int:
        """How many numbers are trained, on all ranks together."""
        return sum(getattr(p, "ds_numel", p.numel()) for _, p in self._trainable())

    @property
    def bytes_per_weight(self) -> int:
        """Of a trained weight as the model holds it."""
        return next(p.element_size() for _, p in self._trainable())

    @property
    def module(self) -> torch.nn.Module:
        """The model itself, as it was given."""
        return cast(torch.nn.Module, self._engine.module)

    def step(
        self, batches: StepBatches, loss_function: LossFunction, learning_rate: float, notice: int = 0
    ) -> StepResult:
        """Forward and backward over the micro-batches, then one update of the weights.

        The `notice` of rank 0 comes to all ranks with the loss, so that they act upon it after the same step.
        """
        self._engine.train()
        self._set_learning_rate(learning_rate)
        accumulation = self._engine.gradient_accumulation_steps()
        # DeepSpeed divides by the accumulation steps and averages over the ranks; what remains is the sum over the
        # trained tokens of the global batch divided by their weights, which is their number where all weigh 1.
        scale = self.num_workers * accumulation / (batches.loss_weight or 1.0)
        # Loss and notice; every whole number below 2^53 is itself in double precision.
        total = torch.tensor([0, notice if self.rank == 0 else 0], dtype=torch.float64, device=self.device)
        grad_norm: float | None = None
        for batch in batches.micro_batches:
            loss = loss_function(self._engine, batch.to(self.device))
            total[0] += loss.detach()
            self._engine.backward(loss * scale)
            if self._engine.is_gradient_accumulation_boundary():
                grad_norm = self._plain_grad_norm()
            self._engine.step()
        dist.all_reduce(total)
        loss_sum, agreed_notice = total.tolist()
        return StepResult(
            loss=loss_sum / (batches.loss_weight or 1.0),
            grad_norm=grad_norm if grad_norm is not None else float(self._engine.get_global_grad_norm()),
            learning_rate=learning_rate,
            num_trained_tokens=batches.num_trained_tokens,
            num_tokens=batches.num_tokens,
            notice=int(agreed_notice),
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], loss_function: LossFunction) -> float:
        """Loss summed over the trained tokens of all ranks' batches, in nats; every rank brings equally many
        batches.
        """
        self._engine.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            total += loss_function(self._engine, batch.to(self.device))
        dist.all_reduce(total)
        return float(total.item())

    def weights(self, *, trainable_only: bool) -> dict[str, torch.Tensor]:
        """All weights (or the trained ones) in full, on the CPU of rank 0; the other ranks get an empty mapping."""
        gathered: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if trainable_only and not parameter.requires_grad:
                continue
            with self._whole(parameter):
                if self.rank == 0:
                    gathered[name] = parameter.detach().cpu().clone()
        return gathered

    def optimizer_state(self) -> OptimizerState:
        """This rank's share of the state: every rank takes the parameters whose turn it is, so that all share the
        writing.
        """
        self._link_optimizer_state()
        keys = self._state_keys()
        tensors: dict[str, torch.Tensor] = {}
        for index, (name, parameter) in enumerate(self._trainable()):
            for key in keys:
                tensor = self._get(parameter, key)
                if index % self.num_workers == self.rank:
                    tensors[f"{name}|{key}"] = tensor.detach().float().cpu().clone()
        return OptimizerState(tensors, self._num_updates(), self._loss_scaler())

    def restore_optimizer_state(self, state: OptimizerState) -> None:
        """Go on exactly where `state` was taken; the model must have been built from the weights saved with it.

        `state.tensors` holds all parameters, whatever the number of workers that wrote them.
        """
        self._make_optimizer_state_exist()
        self._link_optimizer_state()
        keys = self._state_keys()
        for name, parameter in self._trainable():
            for key in keys:
                self._set(parameter, key, state.tensors[f"{name}|{key}"].to(self.device))
        for values in self._inner_optimizer().state.values():
            if "step" in values:
                values["step"].fill_(state.num_updates)
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if scaler is not None:  # ZeRO 1 to 3 have one, that of fp32 and bf16 never changes
            for field, value in state.loss_scaler.items():
                setattr(scaler, field, value)

    def _make_optimizer_state_exist(self) -> None:
        """A step with zero loss and zero learning rate: DeepSpeed lays out optimizer state only in a first step."""
        self._set_learning_rate(0.0)
        batch = collate([EMPTY_SAMPLE]).to(self.device)
        for _ in range(self._engine.gradient_accumulation_steps()):
            logits = self._engine(input_ids=batch.input_ids, use_cache=False).logits
            self._engine.backward(logits.float().sum() * 0)
            self._engine.step()

    def _link_optimizer_state(self) -> None:
        """Tell every parameter where its optimizer state is.

        ZeRO 1 and 2 do so after the first parameter group's first step, when the state of the other groups does not
        exist yet.
        """
        inner = self._inner_optimizer()
        for _, parameter in self._trainable():
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                partition = inner.param_groups[mapping.param_group_index]["params"][0]
                mapping.set_optim_state_fragment(partition, inner.state[partition])

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def _plain_grad_norm(self) -> float | None:
        """Norm where no ZeRO optimizer measures it (stage 0); the gradients are already averaged then."""
        if self._engine.zero_optimization_stage() > 0:
            return None
        gradients = [parameter.grad for _, parameter in self._trainable() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    def _whole(self, parameter: torch.nn.Parameter) -> Any:
        """Within this context a parameter partitioned by ZeRO-3 is whole."""
        return deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext()

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, getattr(self._engine.optimizer, "optimizer", self._engine.optimizer))

    def _state_keys(self) -> list[str]:
        """Names of the per-parameter tensors: the optimizer's, and the master weight where the model is in low
        precision.
        """
        states = next(iter(self._inner_optimizer().state.values()))
        keys = sorted(key for key, value in states.items() if torch.is_tensor(value) and value.dim() > 0)
        first = next(parameter for _, parameter in self._trainable())
        return keys if first.dtype == torch.float32 else [*keys, MASTER_WEIGHT]

    def _get(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        if not _is_under_zero(parameter):
            return cast(torch.Tensor, self._inner_optimizer().state[parameter][key])
        if key == MASTER_WEIGHT:
            return cast(torch.Tensor, safe_get_full_fp32_param(parameter))
        return cast(torch.Tensor, safe_get_full_optimizer_state(parameter, key))

    def _set(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
        if not _is_under_zero(parameter):
            self._inner_optimizer().state[parameter][key].copy_(value)
        elif key == MASTER_WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _num_updates(self) -> float:
        values = next(iter(self._inner_optimizer().state.values()))
        return float(values.get("step", 0))

    def _loss_scaler(self) -> dict[str, float]:
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {field: getattr(scaler, field) for field in SCALER_FIELDS if hasattr(scaler, field)}


def _is_under_zero(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")

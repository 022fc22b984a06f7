"""One optimizer step over one global batch, by DeepSpeed; and the state that lets a run go on exactly.

In: a model with its loss, an optimizer, a resolved DeepSpeed configuration, and micro-batches. Out: losses, norms of
gradients, weights and optimizer state as plain named tensors. It does not know data, files, YAML or Ray.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from llmforge.train.batches import Batch, StepBatches
from llmforge.train.losses import Computed, NextTokenLoss
from llmforge.train.memory import peak_memory_bytes
from llmforge.train.optimizer_state import (
    OptimizerState,
    forget_optimizer_state,
    loss_scaler_fields,
    restore_optimizer_state,
    take_optimizer_state,
)
from llmforge.train.rated_losses import reference_point
from llmforge.train.step_clock import StepClock


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
    num_positions: int
    """Tokens that were computed, padding included."""
    num_token_pairs: int
    """Squares of the lengths of the examples, added up."""
    peak_memory_bytes: tuple[int, ...]
    """Of every rank, by its number."""
    part_seconds: Mapping[str, float]
    """Of this rank: `forward`, `backward`, `optimizer`."""
    notice: int = 0
    """The number that rank 0 gave to the step."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the task measures beside its loss, as means in the same way."""


def start_deepspeed(device: torch.device) -> None:
    """Make the process group, which partitioned loading needs before there is an engine; once is enough."""
    # Else DeepSpeed compiles a C++ helper for CPU collectives at the first start: a minute, and a compiler needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")


class TrainingEngine:
    """A model under DeepSpeed. Every method is collective: all ranks call it, in the same order."""

    def __init__(
        self,
        loss: NextTokenLoss,
        optimizer: torch.optim.Optimizer,
        deepspeed_config: dict[str, Any],
        device: torch.device,
    ) -> None:
        start_deepspeed(device)
        self._engine = deepspeed.initialize(model=loss, optimizer=optimizer, config=deepspeed_config)[0]
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
    def is_partitioned(self) -> bool:
        """Whether the weights lie in parts on the ranks, so that every pass over the model needs all of them."""
        return bool(self._engine.zero_optimization_partition_weights())

    @property
    def loss(self) -> NextTokenLoss:
        """The model with its loss, as it was given."""
        return cast(NextTokenLoss, self._engine.module)

    @property
    def module(self) -> torch.nn.Module:
        """The model itself, as it was given."""
        return cast(torch.nn.Module, self.loss.model)

    def step(self, batches: StepBatches, learning_rate: float, notice: int = 0) -> StepResult:
        """Forward and backward over the micro-batches, then one update of the weights.

        The `notice` of rank 0 comes to all ranks with the loss, so that they act upon it after the same step.
        """
        self._set_learning_rate(learning_rate)
        clock = StepClock(self.device)
        weight = batches.loss_weight or 1.0
        sums, grad_norm = self._accumulate(self._compared(batches.micro_batches), 1 / weight, clock)
        numbers = [notice if self.rank == 0 else 0, *_sizes(batches.micro_batches)]
        (loss, *measured), (agreed_notice, num_positions, num_token_pairs, *peaks) = self._sum(sums, numbers)
        return StepResult(
            loss=loss / weight,
            grad_norm=grad_norm if grad_norm is not None else float(self._engine.get_global_grad_norm()),
            learning_rate=learning_rate,
            num_trained_tokens=batches.num_trained_tokens,
            num_tokens=batches.num_tokens,
            num_positions=int(num_positions),
            num_token_pairs=int(num_token_pairs),
            peak_memory_bytes=tuple(int(peak) for peak in peaks),
            part_seconds=clock.seconds(),
            notice=int(agreed_notice),
            measures=self.loss.means(measured, weight),
        )

    def rehearse(self, batch: Batch) -> None:
        """Take a step of micro-batches like this one that changes nothing, so that memory that does not suffice for
        the largest of them is missed before the first step.
        """
        scaler = loss_scaler_fields(self._engine)
        self._set_learning_rate(0.0)
        batches = self._compared([batch] * self._engine.gradient_accumulation_steps())
        self._accumulate(batches, 0.0, StepClock(self.device))
        forget_optimizer_state(self._engine, scaler)

    def _compared(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """With the reference point of the global batch that they are a part of, where the loss has one."""
        if not self.loss.has_reference_point:
            return batches
        point = self._reference_point(batches)
        return [replace(batch, reference_point=point) for batch in batches]

    @torch.no_grad()
    def _reference_point(self, batches: Iterable[Batch]) -> torch.Tensor:
        """What rated answers are compared with, by the mismatched ones of all ranks; without dropout."""
        self._engine.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            assert batch.mismatched is not None
            total += self._engine(batch.mismatched.to(self.device))
        dist.all_reduce(total)
        return reference_point(total)

    def _accumulate(
        self, batches: Sequence[Batch], factor: float, clock: StepClock
    ) -> tuple[torch.Tensor, float | None]:
        """Forward and backward over micro-batches, then one update of the weights.

        Gives this rank's loss and measures, summed, and the norm of the gradient where DeepSpeed does not measure it.
        The gradient is that of the sum over all ranks times `factor`.
        """
        self._engine.train()
        # DeepSpeed divides by the accumulation steps and averages over the ranks.
        scale = self.num_workers * self._engine.gradient_accumulation_steps() * factor
        total = self._zeros()
        grad_norm: float | None = None
        for batch in batches:
            loss = self._compute(batch, total)
            clock.mark("forward")
            self._engine.backward(loss * scale)
            clock.mark("backward")
            if self._engine.is_gradient_accumulation_boundary():
                grad_norm = self._plain_grad_norm()
            self._engine.step()
            clock.mark("optimizer")
        return total, grad_norm

    def _zeros(self) -> torch.Tensor:
        """For the sums of the loss and of what is measured beside it."""
        return torch.zeros(1 + len(self.loss.measure_names), dtype=torch.float64, device=self.device)

    def _compute(self, batch: Batch, total: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch with its graph; adds it and the measures to `total`."""
        computed: Computed = self._engine(batch.to(self.device))
        loss, measures = computed if isinstance(computed, tuple) else (computed, None)
        total[0] += loss.detach()
        if measures is not None:
            total[1:] += measures
        return loss

    def _sum(self, sums: torch.Tensor, numbers: Sequence[int]) -> tuple[list[float], list[float]]:
        """The loss and the measures, and the numbers, all added up over all ranks, and behind the latter the peak
        memory of each of them, in one exchange.
        """
        # Whole numbers below 2^53 are themselves in double precision.
        peaks = [0] * self.num_workers
        peaks[self.rank] = peak_memory_bytes(self.device)
        own = torch.cat([sums, torch.tensor([*numbers, *peaks], dtype=torch.float64).to(self.device)])
        dist.all_reduce(own)
        summed: list[float] = own.tolist()
        return summed[: len(sums)], summed[len(sums) :]

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Loss summed over the trained tokens of all ranks' batches, in nats; every rank brings equally many
        batches.
        """
        return self._summed(batches)[0]

    def measure(self, batches: Callable[[], Iterable[Batch]], weight: float) -> tuple[float, dict[str, float]]:
        """The mean loss of batches, which may be asked for twice, and what the task measures beside it. `weight`: the
        denominator of their loss, on all ranks together.
        """
        point = self._reference_point(batches()) if self.loss.has_reference_point else None
        loss, *measured = self._summed(replace(batch, reference_point=point) for batch in batches())
        return loss / weight, self.loss.means(measured, weight)

    @torch.no_grad()
    def _summed(self, batches: Iterable[Batch]) -> list[float]:
        """The loss of all ranks' batches and the measures, summed."""
        self._engine.eval()
        total = self._zeros()
        for batch in batches:
            self._compute(batch, total)
        dist.all_reduce(total)
        sums: list[float] = total.tolist()
        return sums

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
        """This rank's share of what resuming needs beside the weights."""
        return take_optimizer_state(self._engine)

    def restore_optimizer_state(self, state: OptimizerState) -> None:
        """Go on exactly where `state` was taken; the model must have been built from the weights saved with it."""
        restore_optimizer_state(self._engine, state, self.device)

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


def _sizes(batches: Sequence[Batch]) -> list[int]:
    """Positions and pairs of tokens of this rank's micro-batches."""
    return [sum(batch.num_positions for batch in batches), sum(batch.num_token_pairs for batch in batches)]

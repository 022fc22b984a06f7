"""Speed, memory and time of training: arithmetic on numbers that are given to it.

In: what one optimizer step took, as a `StepSample`; clock readings; a loss. Out: the `train/...` numbers of a metric
record, an estimate of the time left, a perplexity, a duration in words. It reads no clock, no device and no model,
so it needs no torch.

A metric record is one flat mapping; it may hold any part of these keys, whose meaning `docs/metrics.md` gives:

- `step`, `epoch`, `train/loss`, `train/lr`, `train/grad_norm`;
- `train/trained_tokens_per_second`, `train/tokens_per_second`, and both with `_per_device`;
- `train/step_seconds`, and of it `train/data_seconds`, `train/forward_seconds`, `train/backward_seconds`,
  `train/optimizer_seconds`;
- `train/padding_share`, `train/tflops_per_device`, `train/mfu`, `train/mfu_6n`;
- `train/peak_memory_bytes`, `train/peak_memory_bytes_rank_0` and so on;
- `eval/loss`, `eval/perplexity`, `eval/trained_tokens`, `eval/seconds`;
- where pairs are compared, below both `train/` and `eval/`: `reward_chosen`, `reward_rejected`, `reward_margin`,
  `reward_accuracy`, `log_probability_chosen`, `log_probability_rejected`, `kl`; they have no perplexity;
- where answers are rated, the same with `desirable` and `undesirable` in place of `chosen` and `rejected`;
- of a classifier `train/accuracy`, and below `eval/`: `accuracy`, `f1`, `prauc`, `calibration_error`,
  `calibration_error_before`, `temperature`, `threshold`, `precision/LABEL`, `recall/LABEL`; no perplexity either;
- `save/seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Record = Mapping[str, float]
"""A metric record."""

PARTS = ("data", "forward", "backward", "optimizer")
"""What the time of a step goes into: waiting for its batch, the loss, the gradients, the update of the weights."""
LABEL_METRICS = {"eval/accuracy": "accuracy", "eval/f1": "F1", "eval/prauc": "PR AUC"}
"""What an evaluation of a classifier may measure, and what people call it."""
CHOOSING_METRICS = {**LABEL_METRICS, "eval/reward_accuracy": "reward accuracy"}
"""What may choose the best checkpoint in the place of the loss; higher is better."""
RANK_MEMORY_PREFIX = "train/peak_memory_bytes_rank_"


@dataclass(frozen=True)
class StepSample:
    """What one optimizer step worked on, over all ranks, and what it took."""

    num_tokens: int
    """Tokens of the global batch, padding not counted."""
    num_trained_tokens: int
    """Those of them that have a label."""
    num_positions: int
    """What the model computed: tokens and padding."""
    seconds: float
    """Wall-clock time of the step, from fetching its batch to the update of the weights."""
    part_seconds: Mapping[str, float]
    """Wall-clock time of each of `PARTS`; what was not measured is left out. They need not add up to `seconds`."""
    operations: float
    """Floating point operations that the model needs for the step; 0 where that is not known."""
    operations_6n: float
    """6 x parameters x tokens; 0 where that is not known."""
    peak_memory_bytes: tuple[int, ...]
    """One number a rank; empty where the devices cannot tell."""


class StepMeter:
    """Means over the steps since the last reading.

    `peak_operations_per_second` is that of one device; None where it is not known.
    """

    def __init__(self, num_devices: int, peak_operations_per_second: float | None) -> None:
        self._num_devices = num_devices
        self._peak = peak_operations_per_second
        self._samples: list[StepSample] = []
        self._told_memory: tuple[int, ...] = ()

    def add(self, sample: StepSample) -> None:
        self._samples.append(sample)

    def read(self) -> dict[str, float]:
        """The `train/...` numbers of the steps added since the last reading, which are then forgotten.

        Rates are tokens over time, not means of rates, so that slow steps count for what they took. What is not known
        has no key.
        """
        assert self._samples, "StepMeter.read needs at least one step since the last reading"
        samples, self._samples = self._samples, []
        return {**self._rates(samples), **_times(samples), **self._work(samples), **self._memory(samples)}

    def _rates(self, samples: Sequence[StepSample]) -> dict[str, float]:
        seconds = sum(sample.seconds for sample in samples)
        trained = per_second(sum(sample.num_trained_tokens for sample in samples), seconds)
        total = per_second(sum(sample.num_tokens for sample in samples), seconds)
        return {
            "train/trained_tokens_per_second": trained,
            "train/tokens_per_second": total,
            "train/trained_tokens_per_second_per_device": trained / self._num_devices,
            "train/tokens_per_second_per_device": total / self._num_devices,
        }

    def _work(self, samples: Sequence[StepSample]) -> dict[str, float]:
        """Padding, and operations as they are and as a share of the peak (model FLOP/s utilization, MFU)."""
        metrics: dict[str, float] = {}
        num_positions = sum(sample.num_positions for sample in samples)
        if num_positions:
            metrics["train/padding_share"] = 1 - sum(sample.num_tokens for sample in samples) / num_positions
        device_seconds = self._num_devices * sum(sample.seconds for sample in samples)
        if all(sample.operations for sample in samples):
            rate = per_second(sum(sample.operations for sample in samples), device_seconds)
            metrics["train/tflops_per_device"] = rate / 1e12
            if self._peak is not None:
                metrics["train/mfu"] = rate / self._peak
        if self._peak is not None and all(sample.operations_6n for sample in samples):
            rate = per_second(sum(sample.operations_6n for sample in samples), device_seconds)
            metrics["train/mfu_6n"] = rate / self._peak
        return metrics

    def _memory(self, samples: Sequence[StepSample]) -> dict[str, float]:
        """The most of all ranks, and of several that of each rank for which it is another than was last told."""
        known = [sample.peak_memory_bytes for sample in samples if sample.peak_memory_bytes]
        if not known:
            return {}
        peaks = tuple(max(ranks) for ranks in zip(*known, strict=True))
        metrics: dict[str, float] = {"train/peak_memory_bytes": max(peaks)}
        if len(peaks) > 1:
            told = self._told_memory or (None,) * len(peaks)
            changed = (rank for rank, peak in enumerate(peaks) if peak != told[rank])
            metrics |= {f"{RANK_MEMORY_PREFIX}{rank}": peaks[rank] for rank in changed}
        self._told_memory = peaks
        return metrics


def _times(samples: Sequence[StepSample]) -> dict[str, float]:
    """Means per step; of a part, where every step has measured it."""
    metrics = {"train/step_seconds": sum(sample.seconds for sample in samples) / len(samples)}
    for part in PARTS:
        if all(part in sample.part_seconds for sample in samples):
            metrics[f"train/{part}_seconds"] = sum(sample.part_seconds[part] for sample in samples) / len(samples)
    return metrics


@dataclass(frozen=True)
class TimeEstimate:
    """Predicts the time left from the wall-clock time per step so far, evaluations and saves included.

    The origin is the end of a step, not the start of training: the first step compiles and allocates, and would make
    a short run look long.
    """

    origin_step: int
    origin_seconds: float
    """The clock's reading when `origin_step` had been taken."""

    def seconds_left(self, step: int, now_seconds: float, max_steps: int) -> float | None:
        """Seconds until `max_steps`, or None until a step beyond the origin has been taken."""
        num_steps = step - self.origin_step
        if num_steps <= 0:
            return None
        return (now_seconds - self.origin_seconds) / num_steps * (max_steps - step)


def per_second(count: float, seconds: float) -> float:
    """`count / seconds`; NaN where the clock saw no time pass, since a rate is then unknown."""
    return count / seconds if seconds > 0 else math.nan


def perplexity(loss: float) -> float:
    """`exp(loss)` of a mean loss in nats per token; infinite where that exceeds a float (a loss above 709)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def loss_meaning(evaluation: Record) -> str:
    """What an evaluation loss comes to: how well labels are told, or pairs and rated answers; or a perplexity."""
    labels = [f"{name} {evaluation[key]:.3f}" for key, name in LABEL_METRICS.items() if key in evaluation]
    if labels:
        return ", ".join(labels)
    if "eval/reward_accuracy" in evaluation:
        return f"accuracy {evaluation['eval/reward_accuracy']:.1%}"
    value = evaluation.get("eval/perplexity", perplexity(evaluation["eval/loss"]))
    return f"perplexity {value:,.2f}" if value < 1e6 else f"perplexity {value:.3g}"


def duration_text(seconds: float) -> str:
    """A time for people, in at most two units: `3.2 s`, `45 s`, `3 min 20 s`, `1 h 03 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest_seconds = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    days, rest_hours = divmod(hours, 24)
    if days:
        return f"{days} d {rest_hours} h"
    if hours:
        return f"{hours} h {rest_minutes:02} min"
    return f"{minutes} min {rest_seconds:02} s" if minutes else f"{rest_seconds} s"

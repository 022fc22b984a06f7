"""Speed, memory and time of training: arithmetic on numbers that are given to it.

In: what one optimizer step took, as a `StepSample`; clock readings; a loss. Out: the `train/...` numbers of a metric
record, an estimate of the time left, a perplexity, a duration in words. It reads no clock, no device and no model,
so it needs no torch.

A metric record is one flat mapping: `step`, `epoch`, `train/loss`, `train/lr`, `train/grad_norm`,
`train/trained_tokens_per_second`, `train/tokens_per_second`, `train/step_seconds`, `train/peak_memory_bytes`,
`eval/loss`, `eval/perplexity`, `eval/trained_tokens`, `eval/seconds`. A record may hold any part of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Record = Mapping[str, float]
"""A metric record."""


@dataclass(frozen=True)
class StepSample:
    """What one optimizer step worked on, over all ranks, and how long it took."""

    num_tokens: int
    """Tokens of the global batch, padding not counted."""
    num_trained_tokens: int
    """Those of them that have a label."""
    seconds: float
    """Wall-clock time of the step, from fetching its batch to the update of the weights."""


class StepMeter:
    """Means over the steps since the last reading."""

    def __init__(self) -> None:
        self._samples: list[StepSample] = []

    def add(self, sample: StepSample) -> None:
        self._samples.append(sample)

    def read(self, peak_memory_bytes: int | None = None) -> dict[str, float]:
        """The `train/...` speed numbers of the steps added since the last reading, which are then forgotten.

        Rates are tokens over time, not means of rates, so that slow steps count for what they took.
        `peak_memory_bytes` is passed through; None, where the device cannot tell, leaves the key out.
        """
        assert self._samples, "StepMeter.read needs at least one step since the last reading"
        samples, self._samples = self._samples, []
        seconds = sum(sample.seconds for sample in samples)
        metrics = {
            "train/trained_tokens_per_second": per_second(sum(s.num_trained_tokens for s in samples), seconds),
            "train/tokens_per_second": per_second(sum(s.num_tokens for s in samples), seconds),
            "train/step_seconds": seconds / len(samples),
        }
        if peak_memory_bytes is not None:
            metrics["train/peak_memory_bytes"] = peak_memory_bytes
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


def per_second(count: int, seconds: float) -> float:
    """`count / seconds`; NaN where the clock saw no time pass, since a rate is then unknown."""
    return count / seconds if seconds > 0 else math.nan


def perplexity(loss: float) -> float:
    """`exp(loss)` of a mean loss in nats per token; infinite where that exceeds a float (a loss above 709)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


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

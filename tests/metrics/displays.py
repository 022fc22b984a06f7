"""What tests of the display of a run share: a clock, one step, and how a run begins."""

from __future__ import annotations

from llmforge.metrics.progress import ProgressDisplay


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def record(step: int) -> dict[str, float]:
    return {"train/loss": 5 / step, "train/lr": 1e-4, "train/trained_tokens_per_second": 12345.6}


def begin(display: ProgressDisplay, clock: Clock, max_steps: int) -> None:
    """Data are prepared, workers start, and training begins."""
    display.phase("preparing data")
    for rows in range(0, 12001, 3000):
        display.data(rows, 12000)
        clock.seconds += 2.0
    display.phase("starting workers")
    clock.seconds += 8.0
    display.start_training(first_step=0, max_steps=max_steps)

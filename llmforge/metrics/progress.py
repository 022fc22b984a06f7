"""The one display of a run, drawn by the driver on stderr.

In: the phase that a run is in, rows of the data stage, metric records, messages that should last. Out: what a view
(`progress_views.py`) draws of them. It knows nothing of Ray; callbacks of any thread may call it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console

from llmforge.metrics.meters import TimeEstimate, duration_text, loss_meaning
from llmforge.metrics.progress_views import PhaseStatus, PlainView, TrainingStatus, View, open_view


class ProgressDisplay:
    """Shows one run; a context manager. Every method may be called from any thread.

    A terminal gets the live view; what is no terminal, or a dumb one, gets plain lines; `view` is drawn on instead.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, view: View | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._lock = threading.RLock()
        self._given_view = view
        self._view: View = view or PlainView(self._console, clock)
        self._phase: PhaseStatus | None = None
        self._training: TrainingStatus | None = None
        self._estimate: TimeEstimate | None = None

    def __enter__(self) -> ProgressDisplay:
        self._view = self._given_view or open_view(self._console, self._clock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._end_phase(succeeded=error is None)
            self._phase = None
            self._draw()
            self._view.close()

    def phase(self, name: str) -> None:
        """The run has entered the phase `name`; before training, the one it leaves stays as a line with its time."""
        with self._lock:
            if self._phase is not None and self._phase.name == name:
                return
            self._end_phase(succeeded=True)
            self._phase = PhaseStatus(name, self._clock())
            self._draw()

    def data(self, rows_done: int, rows_total: int | None = None) -> None:
        """The current phase has worked on `rows_done` rows, of `rows_total` where that is known."""
        with self._lock:
            if self._phase is not None:
                self._phase = dataclasses.replace(self._phase, rows_done=rows_done, rows_total=rows_total)
            self._draw()

    def start_training(self, first_step: int, max_steps: int) -> None:
        """Show the bar: `first_step` steps have been taken (0, or those of the checkpoint resumed from)."""
        with self._lock:
            self.phase("training")
            self._training = TrainingStatus(first_step=first_step, step=first_step, max_steps=max_steps)
            self._estimate = None
            self._draw()

    def update(self, metrics: Mapping[str, float], step: int) -> None:
        """Show a metric record: `train/...` moves the bar, `eval/loss` stays as a line."""
        with self._lock:
            if "train/loss" in metrics and self._training is not None:
                self._training = self._advance(self._training, metrics, step)
                self._draw()
            if "eval/loss" in metrics:
                self._view.line(evaluation_text(metrics, step))

    def message(self, text: str) -> None:
        """Show lines that stay, such as that a checkpoint was saved. Control characters are left out."""
        with self._lock:
            self._view.line(text)

    def _advance(self, training: TrainingStatus, metrics: Mapping[str, float], step: int) -> TrainingStatus:
        now = self._clock()
        if self._estimate is None:
            self._estimate = TimeEstimate(step, now)
        return dataclasses.replace(
            training,
            step=step,
            loss=metrics["train/loss"],
            learning_rate=metrics.get("train/lr"),
            trained_tokens_per_second=metrics.get("train/trained_tokens_per_second"),
            mfu=metrics.get("train/mfu"),
            seconds_left=self._estimate.seconds_left(step, now, training.max_steps),
        )

    def _end_phase(self, succeeded: bool) -> None:
        if self._phase is not None and self._training is None and succeeded:
            duration = duration_text(self._clock() - self._phase.start_seconds)
            self._view.line(f"{self._phase.name}: " + ", ".join(filter(None, [self._phase.rows(), duration])))

    def _draw(self) -> None:
        self._view.draw(self._phase, self._training)


def evaluation_text(metrics: Mapping[str, float], step: int) -> str:
    """The result of an evaluation in one line."""
    loss = metrics["eval/loss"]
    return f"step {step}: evaluation loss {loss:.4f}, {loss_meaning(metrics)}"

"""Where the display of a run is drawn: live on a terminal, as plain lines elsewhere.

In: the state of a run, and texts that stay. Out: on a terminal a line for the phase and a bar for the training, redrawn
in place below the lasting lines; anywhere else (CI, a pipe) plain lines, few and without control characters.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmforge.metrics.meters import duration_text

PLAIN_INTERVAL_SECONDS = 5.0
"""Least time between two plain lines on the progress of the same thing."""

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class PhaseStatus:
    """The phase that the run is in, and how many rows it has done where it counts rows."""

    name: str
    start_seconds: float
    rows_done: int | None = None
    rows_total: int | None = None

    def rows(self) -> str:
        if self.rows_done is None:
            return ""
        return (
            f"{self.rows_done:,} rows" if self.rows_total is None else f"{self.rows_done:,} of {self.rows_total:,} rows"
        )


@dataclass(frozen=True)
class TrainingStatus:
    """How far the training is; a number is None until it has been measured."""

    first_step: int
    step: int
    max_steps: int
    loss: float | None = None
    learning_rate: float | None = None
    trained_tokens_per_second: float | None = None
    mfu: float | None = None
    seconds_left: float | None = None

    def numbers(self) -> list[str]:
        """The measured numbers, each as a short text."""
        texts = []
        if self.loss is not None:
            texts.append(f"loss {self.loss:.4f}")
        if self.learning_rate is not None:
            texts.append(f"lr {self.learning_rate:.2e}")
        if self.trained_tokens_per_second is not None:
            texts.append(f"{self.trained_tokens_per_second:,.0f} trained tokens/s")
        if self.mfu is not None:
            texts.append(f"MFU {self.mfu:.0%}")
        return texts

    def time_left(self) -> str:
        return f"{duration_text(self.seconds_left)} left" if self.seconds_left else ""


class View(Protocol):
    """Where the display is drawn."""

    def draw(self, phase: PhaseStatus | None, training: TrainingStatus | None) -> None:
        """Show the state of the run, which replaces the one before."""

    def line(self, text: str) -> None:
        """Write lines that stay."""

    def close(self) -> None:
        """Leave what was drawn last."""


def open_view(console: Console, clock: Callable[[], float]) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    # FORCE_COLOR, which many CI systems set, makes rich take a pipe for a terminal: ask the stream itself.
    if console.is_interactive and console.file.isatty():
        return LiveView(console, clock)
    return PlainView(console, clock)


class PlainView:
    """Lines for a log: each phase up to training, then progress at most every few seconds, the first and the last."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._phases_shown: set[str] = set()
        self._shown: dict[str, tuple[int, float]] = {}

    def draw(self, phase: PhaseStatus | None, training: TrainingStatus | None) -> None:
        # During training the evaluations and saves speak for themselves, by their results.
        if phase is not None and training is None:
            self._draw_phase(phase)
        if training is not None and training.step > training.first_step:
            self._draw_training(training)

    def line(self, text: str) -> None:
        self._console.print(_printable(text), soft_wrap=True)

    def close(self) -> None:
        pass

    def _draw_phase(self, phase: PhaseStatus) -> None:
        if phase.name not in self._phases_shown:
            self._phases_shown.add(phase.name)
            self.line(phase.name)
        if phase.rows_done is not None and self._due(phase.name, phase.rows_done, phase.rows_total):
            self.line(f"{phase.name}: {phase.rows()}")

    def _draw_training(self, training: TrainingStatus) -> None:
        if self._due("step", training.step, training.max_steps):
            texts = [f"step {training.step} of {training.max_steps}", *training.numbers(), training.time_left()]
            self.line(", ".join(filter(None, texts)))

    def _due(self, subject: str, count: int, total: int | None) -> bool:
        """Whether the count of a subject has changed, and is the first, the last, or the interval has passed."""
        now = self._clock()
        last_count, last_seconds = self._shown.get(subject, (None, 0.0))
        due = last_count is None or count == total or now - last_seconds >= PLAIN_INTERVAL_SECONDS
        if count == last_count or not due:
            return False
        self._shown[subject] = (count, now)
        return True


class LiveView:
    """The phase and the training bar at the bottom of a terminal."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spinner = Spinner("dots", style="cyan")
        self._state: tuple[PhaseStatus | None, TrainingStatus | None] = (None, None)
        # What others print to a terminal must go above the bar; a stdout that is piped is no business of a display.
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=8, redirect_stdout=sys.stdout.isatty()
        )
        self._live.start()

    def draw(self, phase: PhaseStatus | None, training: TrainingStatus | None) -> None:
        self._state = (phase, training)

    def line(self, text: str) -> None:
        self._live.console.print(_printable(text), soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        phase, training = self._state
        rows: list[RenderableType] = []
        # While it trains, the bar says so itself.
        if phase is not None and (training is None or phase.name != "training"):
            rows.append(self._phase_row(phase))
        if training is not None:
            rows += [self._bar_row(training), self._numbers_row(training)]
        return Group(*rows)

    def _phase_row(self, phase: PhaseStatus) -> Table:
        elapsed = duration_text(self._clock() - phase.start_seconds)
        row = Table.grid(padding=(0, 1))
        row.add_row(self._spinner, Text(phase.name, "bold"), Text(phase.rows()), Text(elapsed, "dim"))
        return row

    def _bar_row(self, training: TrainingStatus) -> Table:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        counts = f"step {training.step} of {training.max_steps}"
        bar = ProgressBar(total=training.max_steps, completed=training.step)
        row.add_row(Text("training", "bold"), bar, Text("  ".join(filter(None, [counts, training.time_left()]))))
        return row

    def _numbers_row(self, training: TrainingStatus) -> Text:
        return Text(" " * 9 + "   ".join(training.numbers()), no_wrap=True, overflow="ellipsis")


def _printable(text: str) -> Text:
    """The text as it is: no markup is read from it, and no control character reaches the terminal or the log."""
    return Text(_CONTROL_CHARACTERS.sub("", text))

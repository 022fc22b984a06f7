"""The display of a run that is somewhere else: written as lines where the run is, drawn where a person is.

In: what `ProgressDisplay` would draw. Out: one JSON object a line, which goes into the log of the cluster's job among
whatever else is printed there; and from such a log, line by line, the very display of a local run. Fields that are not
known are passed over, so that client and cluster may be of different versions.

    {"llmforge": "progress", "at": 1763750000.0, "text": "step 20: saved checkpoint step-00000020-1f2e3d4c"}
    {"llmforge": "progress", "at": 1763750001.5, "phase": {...}, "training": {"step": 21, "max_steps": 100, ...}}
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from llmforge.metrics.progress_views import PhaseStatus, PlainView, TrainingStatus, View, open_view

LEAST_INTERVAL_SECONDS = 2.0
MOST_INTERVAL_SECONDS = 30.0
INTERVAL_SHARE = 1 / 2000
"""Of the time that the run has taken: a log of days stays a few megabytes long."""


class ProgressLine(BaseModel):
    """A text that stays, or the state of the run, which replaces the one before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    llmforge: Literal["progress"] = "progress"
    at: float
    """Seconds since the epoch by the clock of the run; so are those inside `phase`."""
    text: str | None = None
    phase: PhaseStatus | None = None
    training: TrainingStatus | None = None


def read_line(line: str) -> ProgressLine | None:
    """The meaning of a line of a job's log; None for what others have printed."""
    if not line.startswith("{"):
        return None
    try:
        return ProgressLine.model_validate_json(line)
    except ValidationError:
        return None


class LineWriter:
    """A `View` that writes lines. `clock` gives seconds since the epoch, and must be the display's too."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._started_at = clock()
        self._written_at = 0.0
        self._written: ProgressLine | None = None
        self._pending: ProgressLine | None = None

    def draw(self, phase: PhaseStatus | None, training: TrainingStatus | None) -> None:
        """Write the state where it is news, or some time has passed; keep it otherwise."""
        self._pending = ProgressLine(at=self._clock(), phase=phase, training=training)
        if self._is_due(self._pending):
            self._flush()

    def line(self, text: str) -> None:
        """Write a text; the state that was before it comes before it."""
        self._flush()
        self._write(ProgressLine(at=self._clock(), text=text))

    def close(self) -> None:
        """Write what was drawn last."""
        self._flush()

    def _is_due(self, state: ProgressLine) -> bool:
        before = self._written
        if before is None or _place(before) != _place(state):
            return True
        if state.training is not None and state.training.step == state.training.max_steps:
            return before.training is None or before.training.step != state.training.step
        elapsed = state.at - self._started_at
        interval = min(MOST_INTERVAL_SECONDS, max(LEAST_INTERVAL_SECONDS, elapsed * INTERVAL_SHARE))
        return state.at - self._written_at >= interval

    def _flush(self) -> None:
        if self._pending is not None:
            self._written, self._written_at = self._pending, self._pending.at
            self._write(self._pending)
            self._pending = None

    def _write(self, line: ProgressLine) -> None:
        self._stream.write(line.model_dump_json(exclude_none=True) + "\n")
        self._stream.flush()


class LinePlayer:
    """Draws the lines of a log. Time passes as it does where the run is, however the clocks of the machines differ."""

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        """`plain`: as lines, also on a terminal."""
        self._told_at = time.time()
        self._heard_at = time.monotonic()
        self._view: View = PlainView(console, self._now) if plain else open_view(console, self._now)
        self.state: ProgressLine | None = None
        """The latest state of the run."""

    def play(self, line: str) -> None:
        """Draw one line of the log."""
        progress = read_line(line)
        if progress is None:
            self._view.line(line)
            return
        self._told_at, self._heard_at = progress.at, time.monotonic()
        if progress.text is not None:
            self._view.line(progress.text)
        else:
            self.state = progress
            self._view.draw(progress.phase, progress.training)

    def wait(self, reason: str) -> None:
        """Show that nothing is heard yet, and why."""
        self._view.draw(PhaseStatus(reason, self._now()), None)

    def tell(self, text: str) -> None:
        """Write a line of one's own."""
        self._view.line(text)

    def close(self) -> None:
        """Leave what was drawn last."""
        self._view.close()

    def _now(self) -> float:
        return self._told_at + time.monotonic() - self._heard_at


def _place(state: ProgressLine) -> tuple[str | None, int | None]:
    """What may change without delay: the phase, and the start of a training."""
    phase, training = state.phase, state.training
    return None if phase is None else phase.name, None if training is None else training.first_step

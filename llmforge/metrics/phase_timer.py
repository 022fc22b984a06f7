"""Where the time of a start went, phase by phase: what `--verbose` prints.

In: named blocks of code, and times measured in other processes. Out: a table in plain text.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class PhaseTimer:
    """Wall-clock time of the named phases of a start; phases may overlap, and may be measured in other processes."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._origin_seconds = clock()
        self._rows: list[tuple[str, float | None, float]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as the phase `name`, also when it raises."""
        start_seconds = self._clock()
        try:
            yield
        finally:
            self._rows.append((name, start_seconds - self._origin_seconds, self._clock() - start_seconds))

    def add(self, name: str, seconds: float) -> None:
        """A phase that was timed elsewhere, such as the imports of a worker: its start is not known here."""
        self._rows.append((name, None, seconds))

    def report(self) -> str:
        """A table in order of start, phases timed elsewhere last; `share` is of the time since the timer was made."""
        total_seconds = self._clock() - self._origin_seconds
        rows = sorted(self._rows, key=lambda row: (row[1] is None, row[1] or 0.0))
        width = max((len(name) for name, _, _ in rows), default=0)
        width = max(width, len("total"))
        lines = [f"{'phase':<{width}}  {'start s':>8}  {'took s':>8}  {'share':>6}"]
        for name, start_seconds, seconds in rows:
            start = "" if start_seconds is None else f"{start_seconds:.2f}"
            share = seconds / total_seconds if total_seconds > 0 else 0.0
            lines.append(f"{name:<{width}}  {start:>8}  {seconds:>8.2f}  {share:>6.0%}")
        lines.append(f"{'total':<{width}}  {'':>8}  {total_seconds:>8.2f}  {'':>6}".rstrip())
        return "\n".join(lines)

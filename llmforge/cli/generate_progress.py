"""How far `llmforge generate` is, on stderr: one line that changes in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Literal

_SECONDS_BETWEEN_LINES = 30.0


class GenerateProgress:
    """Rows and tokens of one run of the command; of a classifier each token is a label."""

    def __init__(self, num_rows: int, num_done: int, unit: Literal["tokens", "labels"]) -> None:
        self._num_rows = num_rows
        self._num_done = num_done
        self._unit = unit
        self._num_answered = num_done
        self._num_tokens = 0
        self._is_terminal = sys.stderr.isatty()
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> GenerateProgress:
        if self._num_done:
            print(f"{self._num_done:,} of {self._num_rows:,} rows are answered already", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()
        if error is not None:
            print(f"{self._num_done:,} of {self._num_rows:,} rows are answered and stored", file=sys.stderr)
        elif self._num_tokens:
            print(self._text(), file=sys.stderr)

    def note(self, text: str) -> None:
        """What happens before the first answer."""
        if self._is_terminal:
            self._show(text)

    def answered(self, num_rows: int, num_tokens: int) -> None:
        """More rows have their answers, which are not stored yet."""
        self._num_answered += num_rows
        self._num_tokens += num_tokens
        now = time.monotonic()
        if self._is_terminal:
            self._show(self._text())
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._text(), file=sys.stderr)

    def stored(self, num_rows: int) -> None:
        """The answers of more rows are stored."""
        self._num_done += num_rows

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._num_tokens / seconds
        return f"{self._num_answered:,} of {self._num_rows:,} rows answered, {rate:,.0f} {self._unit}/s"

    def _show(self, text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

"""Rows of a prompt file answered in windows: as many rows as are sorted by length together and stored together.

In: rows that were checked, and a model. Out: the answered lines of one window after another, in the order of the rows.
An answer depends on its row and its place in the file alone, so it is the same wherever a run was cut short and
whoever computes it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmforge.answers.batch import Answer, BatchLimits
from llmforge.answers.prompt_rows import PromptRow
from llmforge.answers.sampling import Sampling
from llmforge.inference.generate import Generator

WINDOW_ROWS = 512
"""What is lost when a run is killed; many batches, so that their rows are of like length."""


@dataclass(frozen=True)
class Asked:
    """How all rows are answered."""

    sampling: Sampling
    threshold: float | None
    """Of a classifier; None for its own."""
    limits: BatchLimits


@dataclass(frozen=True)
class Window:
    """Rows that follow one another."""

    first: int
    """Place of the first row among all, from 0."""
    rows: list[PromptRow]


@dataclass(frozen=True)
class AnsweredWindow:
    """The lines of a window, and what they took."""

    lines: list[str]
    num_tokens: int


def split_windows(rows: Sequence[PromptRow], num_done: int, num_rows: int = WINDOW_ROWS) -> Iterator[Window]:
    """The windows of the rows behind those that are done."""
    for first in range(num_done, len(rows), num_rows):
        yield Window(first, list(rows[first : first + num_rows]))


class WindowAnswerer:
    """Answers windows with one model."""

    def __init__(self, generator: Generator, asked: Asked) -> None:
        self._generator = generator
        self._asked = asked

    def __call__(
        self, window: Window, on_batch: Callable[[int, int], None] = lambda rows, tokens: None
    ) -> AnsweredWindow:
        """The lines of a window; `on_batch` is told the rows and tokens of each batch."""
        asked = self._asked
        prompts = [
            self._generator.prompt(self._generator.parse(row.messages), asked.sampling, window.first + place)
            for place, row in enumerate(window.rows)
        ]
        answers: dict[int, Answer] = {}
        num_tokens = 0
        for batch in self._generator.answer_all(prompts, asked.sampling, asked.limits, asked.threshold):
            answers |= {answer.index: answer for answer in batch}
            batch_tokens = sum(answer.num_tokens for answer in batch)
            num_tokens += batch_tokens
            on_batch(len(batch), batch_tokens)
        placed = [answers[window.first + place] for place in range(len(window.rows))]
        pairs = zip(window.rows, placed, strict=True)
        lines = [row.answered(answer.text, answer.probabilities) for row, answer in pairs]
        return AnsweredWindow(lines, num_tokens)

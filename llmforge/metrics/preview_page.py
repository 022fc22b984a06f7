"""A preview for people: rows of the training data as the model sees them, in plain values, and their HTML page.

In: `PreviewPage`. Out: one HTML file that opens without a network and runs no script. The page is
`preview.html.jinja` beside this module; rows may hold HTML, and all of it is escaped there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.metrics.page import ExampleSegment, render_page, write_page


@dataclass(frozen=True)
class PageTurn:
    """A line in the table of a row's turns."""

    name: str
    num_tokens: int
    num_trained_tokens: int


@dataclass(frozen=True)
class PageRow:
    """A row that can be trained on."""

    number: int
    """Counted from 1 over all files."""
    place: str
    """`file:line`, and which answer of a pair it is."""
    segments: Sequence[ExampleSegment]
    """The training text."""
    turns: Sequence[PageTurn]
    learnt: Sequence[str]
    """The labels, decoded: one text for each run of trained tokens."""
    prompt_text: str
    """What inference would be given before the last answer."""
    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt_ids: Sequence[int]
    notes: Sequence[str]
    """What a person should know about this row."""

    @property
    def num_trained_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(turn.num_trained_tokens for turn in self.turns)


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be trained on."""

    number: int
    place: str
    problem: str


@dataclass(frozen=True)
class PreviewPage:
    """Everything that the page shows."""

    title: str
    facts: Mapping[str, str]
    """What holds for all rows, by its name: model, prompt format, what is trained."""
    warnings: Sequence[str]
    rows: Sequence[PageRow | RefusedRow]


def write_preview(path: Path, page: PreviewPage) -> None:
    """Write the page to `path`, replacing an older one in one move."""
    write_page(path, render_preview(page))


def render_preview(page: PreviewPage) -> str:
    """The page as text."""
    return render_page("preview.html.jinja", page=page)

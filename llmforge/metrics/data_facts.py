"""What the data stage did, for people: the plain values that the page before training and the report after it share.

In: counts and names. Out: nothing; `data_facts.html.jinja` draws them, and `length_lines` prints the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BAR_WIDTH = 40


@dataclass(frozen=True)
class RowCount:
    """What became of some rows."""

    what: str
    count: int
    share: float
    """Of all rows."""


@dataclass(frozen=True)
class SplitLine:
    """One split of the prepared dataset."""

    name: str
    examples: int
    samples: int
    tokens: int
    trained_tokens: int
    packing_efficiency: float


@dataclass(frozen=True)
class LengthBin:
    """How many examples have a length from `shortest` to `longest` tokens, both included."""

    shortest: int
    longest: int
    count: int


@dataclass(frozen=True)
class Lengths:
    """Lengths of the examples, in tokens."""

    summary: str
    bins: Sequence[LengthBin]
    """At least one."""
    context_length: int


@dataclass(frozen=True)
class DataFacts:
    """Rows, splits and lengths of a prepared dataset."""

    rows: Sequence[RowCount]
    num_dropped: int
    dropped_file: str
    """Lists every row that is not used, with its reason."""
    splits: Sequence[SplitLine]
    lengths: Lengths
    notes: Sequence[str]
    """What was checked, in whole sentences."""


def length_lines(lengths: Lengths) -> Iterator[str]:
    """The lengths as bars for a terminal."""
    most = max(bin.count for bin in lengths.bins)
    digits = max(len(f"{bin.longest:,}") for bin in lengths.bins)
    for bin in lengths.bins:
        bar = "█" * max(round(BAR_WIDTH * bin.count / most), 1 if bin.count else 0)
        mark = "  longer than context_length" if bin.shortest > lengths.context_length and bin.count else ""
        yield f"  {bin.shortest:>{digits},} to {bin.longest:>{digits},}  {bin.count:>9,}  {bar}{mark}".rstrip()

"""The data of a job for people, before a device is taken: rows, lengths, memory, time; in plain values and as a page.

In: `DataPage`. Out: one HTML file that opens without a network and runs no script, or lines for a terminal. The page is
`data.html.jinja` beside this module; names of files and models may hold HTML, and all is escaped there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.config.memory_plan import GIB, MemoryPlan
from llmforge.metrics.charts import LengthBin, draw_lengths
from llmforge.metrics.page import render_page, write_page
from llmforge.metrics.summary import Tile, printable_text

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
class Lengths:
    """Lengths of the examples, in tokens."""

    summary: str
    bins: Sequence[LengthBin]
    """Empty where they were not counted."""
    context_length: int


@dataclass(frozen=True)
class Memory:
    """What one device must hold."""

    batch: str
    """The largest batch, in words."""
    plan: MemoryPlan | None
    """None where the model's sizes are not known."""
    device_gib: float | None
    verdict: str
    """Whether it fits, or why nobody can say."""
    is_warning: bool = False

    @property
    def scale_bytes(self) -> float:
        """What the full width of a bar stands for."""
        total = self.plan.total_bytes if self.plan is not None else 0
        return max(total, (self.device_gib or 0) * GIB, 1)


@dataclass(frozen=True)
class DataPage:
    """Everything that the page shows."""

    title: str
    facts: Mapping[str, str]
    """What the job is, by name: model, prompt format, method."""
    warnings: Sequence[str]
    tiles: Sequence[Tile]
    rows: Sequence[RowCount]
    num_dropped: int
    dropped_file: str
    """Lists every row that is not used, with its reason."""
    splits: Sequence[SplitLine]
    lengths: Lengths
    memory: Memory
    expected: Mapping[str, str]
    """Steps, tokens, time and cost, in words."""


def write_data_page(path: Path, page: DataPage) -> None:
    """Write the page to `path`, replacing an older one in one move."""
    write_page(path, render_data_page(page))


def render_data_page(page: DataPage) -> str:
    """The page as text."""
    lengths = page.lengths
    chart = draw_lengths(lengths.bins, lengths.context_length) if lengths.bins else None
    return render_page("data.html.jinja", page=page, chart=chart, gib=GIB)


def data_lines(page: DataPage) -> Iterator[str]:
    """What the statistics of the data stage do not say: the lengths as bars, the memory, and what is to be expected."""
    if page.num_dropped:
        yield f"dropped rows: {page.dropped_file}"
    yield from _length_lines(page.lengths)
    memory = page.memory
    if memory.plan is not None:
        yield f"memory of each device, {memory.batch}: {memory.plan.total_bytes / GIB:.2f} GiB"
        width = max(len(part.name) for part in memory.plan.parts)
        for part in memory.plan.parts:
            yield f"  {part.name:{width}}  {part.num_bytes / GIB:9.3f} GiB  {part.formula}"
    yield f"memory: {memory.verdict}"
    for name, text in page.expected.items():
        yield printable_text(f"{name}: {text}")


def _length_lines(lengths: Lengths) -> Iterator[str]:
    most = max((bin.count for bin in lengths.bins), default=0)
    digits = max((len(f"{bin.longest:,}") for bin in lengths.bins), default=0)
    for bin in lengths.bins:
        bar = "█" * max(round(BAR_WIDTH * bin.count / most), 1 if bin.count else 0)
        mark = "  longer than context_length" if bin.shortest > lengths.context_length and bin.count else ""
        yield f"  {bin.shortest:>{digits},} to {bin.longest:>{digits},}  {bin.count:>9,}  {bar}{mark}".rstrip()

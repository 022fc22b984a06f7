"""The data of a job for people, before a device is taken: rows, lengths, memory, time, in plain values and as lines.

In: `DataPage`. Out: lines for a terminal; `data_html.py` makes a page of the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmforge.config.memory_plan import GIB, MemoryPlan
from llmforge.metrics.data_facts import DataFacts, length_lines
from llmforge.metrics.summary import Tile, bytes_text, printable_text


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
    data: DataFacts
    memory: Memory
    expected: Mapping[str, str]
    """Steps, tokens, time and cost, in words."""


def data_lines(page: DataPage) -> Iterator[str]:
    """What the statistics of the data stage do not say: the lengths as bars, the memory, and what is to be expected."""
    if page.data.num_dropped:
        yield printable_text(f"dropped rows: {page.data.dropped_file}")
    yield from length_lines(page.data.lengths)
    memory = page.memory
    if memory.plan is not None:
        yield f"memory of each device, {memory.batch}: {bytes_text(memory.plan.total_bytes)}"
        width = max(len(part.name) for part in memory.plan.parts)
        for part in memory.plan.parts:
            yield f"  {part.name:{width}}  {bytes_text(part.num_bytes):>10}  {part.formula}"
    yield printable_text(f"memory: {memory.verdict}")
    for name, text in page.expected.items():
        yield printable_text(f"{name}: {text}")

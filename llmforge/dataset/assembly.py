"""Many rows to token ids at once: what is constant is copied, what is open is encoded, and all of it is gathered.

In: rows as a `Plan`, which rows of one shape share, and the contents that fill it. Out: an `ExampleBatch`. Nothing here
knows special tokens or templates, and there is no Python object per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.cut import CutRow, Run
from llmforge.dataset.encoders import TextEncoders
from llmforge.dataset.example import ExampleBatch


class PlannedRow(NamedTuple):
    """A row as its plan and the texts that fill it."""

    plan: "Plan"
    contents: Sequence[str]
    """By the index of the message."""


class Constant(NamedTuple):
    """Part of every row of a plan: a piece of its buffers."""

    start: int
    length: int


LONG_PIECE = 64
"""Values from which on it is faster to copy pieces one by one than to compute the place of every value."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the rows of one shape are put together."""

    cut_row: CutRow
    ids: NDArray[np.int32]
    """What is the same in all rows."""
    weights: NDArray[np.float32]
    chunks: tuple[Constant | Run, ...]
    seams: tuple[tuple[Run, Run | None], ...]
    """The runs before and behind each seam."""


class _OpenRun(NamedTuple):
    """The same run of all rows of a plan."""

    run: Run
    places: NDArray[np.int64]
    """Which chunk it is, counted over the whole batch; shape (rows,)."""
    rows: Sequence[Sequence[str]]
    """The contents of each row."""


class Assembly:
    """One batch: which texts are to be encoded, and where their ids go."""

    def __init__(self, rows: Sequence[PlannedRow], encoders: TextEncoders) -> None:
        self._rows = rows
        self._encoders = encoders
        num_chunks = np.array([len(row.plan.chunks) for row in rows], dtype=np.int64)
        self._row_ends = np.concatenate([[0], np.cumsum(num_chunks)])
        self._starts = np.zeros(self._row_ends[-1], dtype=np.int64)
        self._lengths = np.zeros(self._row_ends[-1], dtype=np.int64)
        self._ids: list[NDArray[np.int32]] = []
        self._weights: list[NDArray[np.float32]] = []
        self._size = 0

    def examples(self) -> ExampleBatch:
        """Everything encoded and in its place."""
        open_runs: dict[bool, list[_OpenRun]] = {False: [], True: []}
        for plan, indexes in by_plan(self._rows):
            offset = self._add(plan.ids, plan.weights)
            contents = [self._rows[index].contents for index in indexes]
            for number, chunk in enumerate(plan.chunks):
                places = self._row_ends[:-1][indexes] + number
                if isinstance(chunk, Constant):
                    self._starts[places] = offset + chunk.start
                    self._lengths[places] = chunk.length
                else:
                    open_runs[chunk.dummy_prefix].append(_OpenRun(chunk, places, contents))
        for dummy_prefix, group in open_runs.items():
            if group:
                self._encode(group, dummy_prefix=dummy_prefix)
        ends = np.concatenate([[0], np.cumsum(self._lengths)])
        offsets = ends[self._row_ends].astype(np.int64)
        input_ids = gather(np.concatenate([np.zeros(0, np.int32), *self._ids]), self._starts, self._lengths)
        weights = gather(np.concatenate([np.zeros(0, np.float32), *self._weights]), self._starts, self._lengths)
        weights[offsets[:-1][np.diff(offsets) > 0]] = 0.0  # nothing stands before the first token
        return ExampleBatch(input_ids, weights, offsets)

    def _encode(self, open_runs: Sequence[_OpenRun], *, dummy_prefix: bool) -> None:
        """Encode all texts of one kind in one call."""
        texts = [text for run, _, rows in open_runs for text in run.texts(rows)]
        flat = self._encoders.encode(texts, dummy_prefix=dummy_prefix)
        lengths = np.diff(flat.offsets)
        weights = np.empty(len(flat.ids), dtype=np.float32)
        first = 0
        for run, places, rows in open_runs:
            last = first + len(rows)
            self._starts[places] = flat.offsets[first:last] + self._size
            self._lengths[places] = lengths[first:last]
            span = slice(flat.offsets[first], flat.offsets[last])
            weights[span] = run.weights[0]
            if len(set(run.weights)) > 1:
                weights[span] = np.concatenate([weights_within(run, contents, self._encoders) for contents in rows])
            first = last
        self._add(flat.ids, weights)

    def _add(self, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> int:
        """Append to the buffers that the rows are gathered from; returns where."""
        offset = self._size
        self._ids.append(ids)
        self._weights.append(weights)
        self._size += len(ids)
        return offset


def weights_within(run: Run, contents: Sequence[str], encoders: TextEncoders) -> NDArray[np.float32]:
    """Weights of the tokens of a run that is trained in part: a token counts as its first character does.

    Shape (tokens,). It asks for offsets, which only the slower encoder has.
    """
    texts = run.split(contents)
    starts = encoders.token_starts("".join(texts), dummy_prefix=run.dummy_prefix)
    places = np.searchsorted(np.cumsum([len(text) for text in texts]), starts, side="right")
    return np.array(run.weights, dtype=np.float32)[np.minimum(places, len(texts) - 1)]


def gather(buffer: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """The pieces `buffer[start : start + length]`, one behind the other."""
    ends = np.cumsum(lengths)
    num_values = int(ends[-1]) if len(ends) else 0
    if num_values > LONG_PIECE * len(lengths):
        return np.concatenate(
            [buffer[start:end] for start, end in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        )
    places = np.arange(num_values) + np.repeat(starts - (ends - lengths), lengths)
    return np.asarray(buffer[places])


def by_plan(rows: Sequence[PlannedRow]) -> list[tuple[Plan, list[int]]]:
    """Every plan and the indexes of its rows."""
    groups: dict[int, tuple[Plan, list[int]]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(id(row.plan), (row.plan, []))[1].append(index)
    return list(groups.values())

"""Tokenized examples between the two halves of the data stage: in flat files, so that memory stays flat.

In: the tables of `dataset/stage.py`. Out: the examples by index, with their lengths in memory and their tokens mapped
from disk, and the rows that are not used. It does not know what a context length is.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmforge.dataset.assembly import gather
from llmforge.dataset.example import ExampleBatch
from llmforge.dataset.example_table import EXAMPLE_SCHEMA
from llmforge.dataset.stats import CheckTotals
from llmforge.dataset.unused import DUPLICATE, NO_TRAINED_TOKEN, UnusedRow, UnusedRows

PLACE_COLUMNS = ("uri", "line", "source", "is_validation", "is_windowed", "first_length", "is_desirable")
PLACE_SCHEMA = pa.schema([EXAMPLE_SCHEMA.field(name) for name in PLACE_COLUMNS]).append(pa.field("length", pa.int64()))
TOKEN_COLUMNS = {"input_ids": np.dtype(np.int32), "weights": np.dtype(np.float32)}


@dataclass(frozen=True)
class Pieces:
    """Parts of examples, none empty; all arrays have the shape (pieces,)."""

    indexes: NDArray[np.int64]
    """Of the examples."""
    starts: NDArray[np.int64]
    """First token of each, counted from the first of its example."""
    lengths: NDArray[np.int64]
    """In tokens."""
    goes_on: NDArray[np.bool_] | None = None
    """Whether each belongs to the same conversation as the one before it, and may then be empty; None where none does.
    """

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, place: NDArray[np.int64] | slice) -> "Pieces":
        goes_on = None if self.goes_on is None else self.goes_on[place]
        return Pieces(self.indexes[place], self.starts[place], self.lengths[place], goes_on)


class Examples:
    """All examples, in the order of the files; of rows that are pairs both together count as one."""

    def __init__(self, folder: Path) -> None:
        self._places = pa.ipc.open_file(pa.memory_map(str(folder / "places.arrow"), "r")).read_all()
        self.lengths: NDArray[np.int64] = self._places["length"].to_numpy().astype(np.int64)
        """Shape (examples,), in tokens."""
        first_lengths = self._places["first_length"]
        self._first_lengths: NDArray[np.int64] = first_lengths.fill_null(0).to_numpy().astype(np.int64)
        self.num_members = 2 if first_lengths.null_count < len(first_lengths) else 1
        """Conversations of each: 2 where the rows are pairs, or rated and get a mismatched one."""
        labels = self._places["is_desirable"]
        self.are_desirable: NDArray[np.bool_] | None = labels.to_numpy() if labels.null_count < len(labels) else None
        """Of rated rows what their labels say; shape (examples,)."""
        self.sources: NDArray[np.int32] = self._places["source"].to_numpy()
        """Shape (examples,): the number of the source that each comes from."""
        self.is_validation: NDArray[np.bool_] = self._places["is_validation"].to_numpy()
        """Shape (examples,)."""
        self.is_windowed: NDArray[np.bool_] = self._places["is_windowed"].to_numpy()
        """Shape (examples,): whether it is cut into windows where it is too long."""
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1].astype(np.int64)
        self._input_ids, self._weights = (
            np.asarray(np.memmap(folder / name, dtype, "r")) if self.lengths.any() else np.zeros(0, dtype)
            for name, dtype in TOKEN_COLUMNS.items()
        )

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Of rated rows, the tokens before the answer; shape (examples,)."""
        return self._first_lengths

    @property
    def longest_members(self) -> NDArray[np.int64]:
        """Lengths of the longer conversation of each, of a rated row those of its own; shape (examples,)."""
        if self.are_desirable is not None:
            return self.lengths
        longest: NDArray[np.int64] = np.maximum(self._first_lengths, self.lengths - self._first_lengths)
        return longest

    def members(self, pieces: "Pieces") -> "Pieces":
        """The single conversations of whole examples, none of them rated."""
        if self.num_members == 1:
            return pieces
        first = self._first_lengths[pieces.indexes]
        return Pieces(
            np.repeat(pieces.indexes, 2),
            np.stack([pieces.starts, pieces.starts + first], axis=1).ravel(),
            np.stack([first, pieces.lengths - first], axis=1).ravel(),
        )

    def batch(self, pieces: "Pieces") -> ExampleBatch:
        """Parts of examples as examples of their own: the first token of each carries no loss."""
        starts, lengths = self._starts[pieces.indexes] + pieces.starts, pieces.lengths
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        begins = offsets[:-1] if pieces.goes_on is None else offsets[:-1][~pieces.goes_on]
        weights = gather(self._weights, starts, lengths)
        weights[begins] = 0
        return ExampleBatch(gather(self._input_ids, starts, lengths), weights, np.append(begins, offsets[-1:]))

    def are_equal(self, pieces: "Pieces", others: "Pieces") -> NDArray[np.bool_]:
        """Whether parts have the same tokens as others; shape (pieces,)."""
        equal: NDArray[np.bool_] = pieces.lengths == others.lengths
        starts = [(self._starts[part.indexes] + part.starts).tolist() for part in (pieces, others)]
        for place in np.flatnonzero(equal).tolist():
            length = pieces.lengths[place]
            one, other = (self._input_ids[start[place] : start[place] + length] for start in starts)
            equal[place] = np.array_equal(one, other)
        return equal

    def last_ids(self, pieces: Pieces) -> NDArray[np.int32]:
        """The last token of each; shape (pieces,)."""
        last: NDArray[np.int32] = self._input_ids[self._starts[pieces.indexes] + pieces.starts + pieces.lengths - 1]
        return last

    def places(self, indexes: NDArray[np.int64]) -> list[tuple[str, int]]:
        """URI and line of examples."""
        rows = self._places.select(["uri", "line"]).take(indexes).to_pylist()
        return [(row["uri"], row["line"]) for row in rows]


@dataclass(frozen=True)
class Collected:
    """What has come out of the tokenizing half."""

    folder: Path
    """Of the `Examples`."""
    rows_in: int
    invalid: list[UnusedRow]
    unused: UnusedRows
    checks: CheckTotals
    """Over all rows that can be trained on, whatever their length."""


class ExampleCollector:
    """Sorts tables into examples and unused rows; a context manager that closes its files."""

    def __init__(self, folder: Path) -> None:
        """`folder` is there and empty."""
        self._folder = folder
        self._files = ExitStack()
        self._places = self._files.enter_context(pa.ipc.new_file(str(folder / "places.arrow"), PLACE_SCHEMA))
        self._columns = {name: self._files.enter_context((folder / name).open("wb")) for name in TOKEN_COLUMNS}
        self._rows_in = 0
        self._invalid: list[UnusedRow] = []
        self._unused = UnusedRows()
        self._checks = CheckTotals(rows=0, prompts=0, straddled=0, ends_with_terminator=0)
        self._digests: set[bytes] = set()

    def __enter__(self) -> "ExampleCollector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def rows_in(self) -> int:
        """Rows seen so far."""
        return self._rows_in

    def add(self, table: pa.Table) -> None:
        """Take one table of `dataset/stage.py`."""
        self._rows_in += len(table)
        is_valid = pc.is_null(table["reason"])
        is_trained = pc.fill_null(pc.greater(table["num_trained"], 0), False)
        self._invalid += _rows(table.filter(pc.invert(is_valid)))
        untrained = pc.and_(is_valid, pc.invert(is_trained))
        self._unused.add(NO_TRAINED_TOKEN, _rows(table.filter(untrained), NO_TRAINED_TOKEN))
        table = self._without_duplicates(_filtered(table, pc.and_(is_valid, is_trained)))
        self._checks = self._checks.plus(
            rows=len(table),
            prompts=pc.sum(table["num_prompts"]).as_py() or 0,
            straddled=pc.sum(table["straddled"]).as_py() or 0,
            ends_with_terminator=pc.sum(table["ends_with_terminator"]).as_py() or 0,
        )
        lengths = pa.array(_lengths(table["input_ids"]), pa.int64())
        self._places.write_table(table.select(PLACE_COLUMNS).append_column("length", lengths))
        for name, file in self._columns.items():
            for chunk in table[name].chunks:
                file.write(chunk.flatten().to_numpy())

    def _without_duplicates(self, table: pa.Table) -> pa.Table:
        """Without the examples that occurred before, in this table or an earlier one; those without digest stay."""
        if table["digest"].null_count == len(table):
            return table
        is_new = []
        for digest in table["digest"].to_pylist():
            is_new.append(digest not in self._digests)
            self._digests.add(digest)
        mask = pa.array(is_new, pa.bool_())
        self._unused.add(DUPLICATE, _rows(table.filter(pc.invert(mask)), DUPLICATE))
        return table.filter(mask)

    def result(self) -> Collected:
        """All that was added."""
        return Collected(self._folder, self._rows_in, self._invalid, self._unused, self._checks)


def _filtered(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Its rows where `mask` is true, not copied where that is everywhere."""
    return table if pc.all(mask).as_py() in (True, None) else table.filter(mask)


def _rows(table: pa.Table, reason: str | None = None) -> list[UnusedRow]:
    """The rows of a table as unused, for a reason or for their own."""
    facts = table.select(["uri", "line", "reason"]).to_pylist()
    return [UnusedRow(fact["uri"], fact["line"], reason or fact["reason"]) for fact in facts]


def _lengths(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return lengths

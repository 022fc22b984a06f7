"""Which examples of a split are trained on, and how they are written: what fits, what is cut, what shares a sequence.

In: the collected examples of a split and the context length. Out: a shard, and its numbers. Rows that are left out go
to the unused ones, with their reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.collector import Examples, Pieces
from llmforge.dataset.packing import pack
from llmforge.dataset.shards import SampleBatch, Split, write_shard
from llmforge.dataset.stats import LengthSummary, SplitStats, summarise_lengths
from llmforge.dataset.unused import BEYOND_SHARE, NOTHING_LEFT, TOO_LONG, UnusedRow, UnusedRows
from llmforge.errors import DataError

SAMPLES_PER_BATCH = 256
OverLength = Literal["drop", "truncate", "error"]
Mix = Callable[[NDArray[np.int32]], NDArray[np.int64]]
"""Indexes of rows from the source of each, as `dataset/mixture.py` makes them."""


@dataclass(frozen=True)
class Selection:
    """What is used of the examples."""

    examples: Examples
    pieces: Pieces
    """Each at most as long as the context; several of one example where it is cut into windows or repeated."""
    num_rows: int
    num_truncated: int
    context_length: int


def select(
    split: Split,
    examples: Examples,
    context_length: int,
    over_length: OverLength,
    unused: UnusedRows,
    mix: Mix | None = None,
) -> Selection:
    """The examples that fit or are made to, each as often as `mix` says.

    Raises `DataError` where none is left, or where the job wants all to fit.
    """
    is_too_long = (examples.lengths > context_length) & ~examples.is_windowed
    too_long = np.flatnonzero(is_too_long)
    if len(too_long) and over_length == "error":
        listed = "\n".join(f"  {row}" for row in _too_long_rows(examples, too_long, context_length))
        raise DataError(f"{len(too_long)} rows are {TOO_LONG}, and dataset.over_length is error:\n{listed}")
    left_out = too_long
    if over_length == "truncate":
        left_out = too_long[~_still_trained(examples, too_long, context_length)]
        unused.add(NOTHING_LEFT, _rows(examples, left_out, NOTHING_LEFT))
    else:
        unused.add(TOO_LONG, _too_long_rows(examples, too_long, context_length))
    rows = np.delete(np.arange(len(examples.lengths)), left_out)
    if len(rows) == 0:
        summary = summarise_lengths(examples.lengths) if len(examples.lengths) else None
        raise DataError(_nothing_fits(split, summary, context_length))
    if mix is not None:
        mixed = rows[mix(examples.sources[rows])]
        unused.add(BEYOND_SHARE, _rows(examples, np.setdiff1d(rows, mixed), BEYOND_SHARE))
        rows = mixed
    distinct = np.unique(rows)
    num_truncated = int(np.count_nonzero(is_too_long[distinct]))
    return Selection(examples, _pieces(examples, rows, context_length), len(distinct), num_truncated, context_length)


def write_selection(selection: Selection, packing: bool, path: Path) -> SplitStats:
    """Pack the pieces, or leave each alone, and write them."""
    pieces, context_length = selection.pieces, selection.context_length
    packs = pack(pieces.lengths, context_length) if packing else ([index] for index in range(len(pieces)))
    trained_tokens = longest = most_trained = 0

    def batches() -> Iterator[SampleBatch]:
        nonlocal trained_tokens, longest, most_trained
        while members := list(islice(packs, SAMPLES_PER_BATCH)):
            chosen = pieces[np.fromiter(chain.from_iterable(members), np.int64)]
            batch = SampleBatch(selection.examples.batch(chosen), np.array([len(one) for one in members], np.int64))
            samples = batch.samples
            trained = samples.sums(samples.weights > 0)
            trained_tokens += int(trained.sum())
            most_trained = max(most_trained, int(trained.max()))
            longest = max(longest, int(np.diff(samples.offsets).max()))
            yield batch

    num_samples = write_shard(path, batches())
    num_tokens = int(pieces.lengths.sum())
    return SplitStats(
        rows=selection.num_rows,
        examples=len(pieces),
        samples=num_samples,
        tokens=num_tokens,
        trained_tokens=trained_tokens,
        packing_efficiency=num_tokens / (num_samples * context_length),
        longest_sample=longest,
        most_trained=most_trained,
    )


def _pieces(examples: Examples, rows: NDArray[np.int64], context_length: int) -> Pieces:
    """Rows as one piece, cut at the context length, or as all windows of it.

    A window begins with the last token of the one before, so that every token of the text but the first is predicted
    once.
    """
    step = context_length - 1
    lengths = examples.lengths[rows]
    num_pieces = np.where(examples.is_windowed[rows], np.maximum(1, -(-(lengths - 1) // step)), 1)
    first = np.cumsum(num_pieces) - num_pieces
    starts = (np.arange(int(num_pieces.sum())) - np.repeat(first, num_pieces)) * step
    left = np.repeat(lengths, num_pieces) - starts
    return Pieces(np.repeat(rows, num_pieces), starts, np.minimum(left, context_length))


def _rows(examples: Examples, indexes: NDArray[np.int64], reason: str) -> list[UnusedRow]:
    return [UnusedRow(uri, line, reason) for uri, line in examples.places(indexes)]


def _too_long_rows(examples: Examples, indexes: NDArray[np.int64], context_length: int) -> list[UnusedRow]:
    places = zip(examples.places(indexes), examples.lengths[indexes].tolist(), strict=True)
    return [UnusedRow(uri, line, f"{TOO_LONG} ({length} tokens > {context_length})") for (uri, line), length in places]


def _still_trained(examples: Examples, indexes: NDArray[np.int64], context_length: int) -> NDArray[np.bool_]:
    """Whether something carries loss in the part that stays. Shape (indexes,)."""
    lengths = np.minimum(examples.lengths[indexes], context_length)
    batch = examples.batch(Pieces(indexes, np.zeros_like(indexes), lengths))
    return np.asarray(batch.sums(batch.weights > 0) > 0)


def _nothing_fits(split: Split, lengths: LengthSummary | None, context_length: int) -> str:
    if lengths is None and split == "valid":
        return "no row is left for validation; raise dataset.valid_fraction, or give valid_path more rows"
    if lengths is None:
        return "no row is left for training; lower dataset.valid_fraction, or give train_path more rows"
    return (
        f"context_length: no {split} row fits into {context_length} tokens: the shortest has {lengths.shortest}, "
        f"95 % have at most {lengths.p95}; raise context_length"
    )

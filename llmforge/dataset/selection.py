"""Which examples of a split are trained on, and how they are written: what fits, what is cut, what shares a sequence.

In: the collected examples of a split and the context length. Out: a shard, and its numbers. Rows that are left out go
to the unused ones, with their reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.collector import Examples
from llmforge.dataset.packing import pack
from llmforge.dataset.shards import SampleBatch, Split, write_shard
from llmforge.dataset.stats import LengthSummary, SplitStats, summarise_lengths
from llmforge.dataset.unused import NOTHING_LEFT, TOO_LONG, UnusedRow, UnusedRows
from llmforge.errors import DataError

SAMPLES_PER_BATCH = 256
OverLength = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Selection:
    """Examples that are used."""

    examples: Examples
    indexes: NDArray[np.int64]
    """Shape (used,), in the order of the files."""
    lengths: NDArray[np.int64]
    """Shape (used,), in tokens, at most the context length."""
    num_truncated: int
    context_length: int


def select(
    split: Split, examples: Examples, context_length: int, over_length: OverLength, unused: UnusedRows
) -> Selection:
    """The examples that fit, or are made to.

    Raises `DataError` where none is left, or where the job wants all to fit.
    """
    too_long = np.flatnonzero(examples.lengths > context_length)
    if len(too_long) and over_length == "error":
        listed = "\n".join(f"  {row}" for row in _too_long_rows(examples, too_long, context_length))
        raise DataError(f"{len(too_long)} rows are {TOO_LONG}, and dataset.over_length is error:\n{listed}")
    left_out = too_long
    if over_length == "truncate":
        left_out = too_long[~_still_trained(examples, too_long, context_length)]
        unused.add(NOTHING_LEFT, [UnusedRow(uri, line, NOTHING_LEFT) for uri, line in examples.places(left_out)])
    else:
        unused.add(TOO_LONG, _too_long_rows(examples, too_long, context_length))
    is_used = np.ones(len(examples.lengths), dtype=bool)
    is_used[left_out] = False
    indexes = np.flatnonzero(is_used)
    if len(indexes) == 0:
        summary = summarise_lengths(examples.lengths) if len(examples.lengths) else None
        raise DataError(_nothing_fits(split, summary, context_length))
    lengths = np.minimum(examples.lengths[indexes], context_length)
    return Selection(examples, indexes, lengths, len(too_long) - len(left_out), context_length)


def write_selection(selection: Selection, packing: bool, path: Path) -> SplitStats:
    """Pack the examples, or leave each alone, and write them."""
    lengths, context_length = selection.lengths, selection.context_length
    packs = pack(lengths.tolist(), context_length) if packing else ([index] for index in range(len(lengths)))
    trained_tokens = 0

    def batches() -> Iterator[SampleBatch]:
        nonlocal trained_tokens
        while members := list(islice(packs, SAMPLES_PER_BATCH)):
            chosen = selection.indexes[np.fromiter(chain.from_iterable(members), np.int64)]
            batch = selection.examples.batch(chosen, max_tokens=context_length)
            trained_tokens += int(np.count_nonzero(batch.weights > 0))
            yield SampleBatch(batch, np.array([len(one) for one in members], dtype=np.int64))

    num_samples = write_shard(path, batches())
    num_tokens = int(lengths.sum())
    return SplitStats(
        examples=len(lengths),
        samples=num_samples,
        tokens=num_tokens,
        trained_tokens=trained_tokens,
        packing_efficiency=num_tokens / (num_samples * context_length),
    )


def _too_long_rows(examples: Examples, indexes: NDArray[np.int64], context_length: int) -> list[UnusedRow]:
    places = zip(examples.places(indexes), examples.lengths[indexes].tolist(), strict=True)
    return [UnusedRow(uri, line, f"{TOO_LONG} ({length} tokens > {context_length})") for (uri, line), length in places]


def _still_trained(examples: Examples, indexes: NDArray[np.int64], context_length: int) -> NDArray[np.bool_]:
    """Whether something carries loss in the part that stays. Shape (indexes,)."""
    batch = examples.batch(indexes, max_tokens=context_length)
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

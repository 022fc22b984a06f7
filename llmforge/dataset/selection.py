"""Which examples of a split are trained on, and how they are written: what fits, what is cut, what shares a sequence.

In: the collected examples of a split and the context length. Out: a shard, and its numbers. Rows that are left out go
to the unused ones, with their reason.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.collector import Examples, Pieces
from llmforge.dataset.mismatched import NONE, draw_partners, mismatched_lengths, rated_conversations
from llmforge.dataset.packing import pack
from llmforge.dataset.shards import SampleBatch, Split, shard_name, write_shard
from llmforge.dataset.stats import LengthSummary, RatedStats, SplitStats, summarise_lengths
from llmforge.dataset.unused import BEYOND_SHARE, NOTHING_LEFT, TOO_LONG, UnusedRow, UnusedRows
from llmforge.errors import DataError

SAMPLES_PER_BATCH = 256
TOKENS_PER_SHARD = 8 << 20
"""Or a little fewer: 64 MiB."""
SHARDS_AT_ONCE = 2
OverLength = Literal["drop", "truncate", "error"]
Mix = Callable[[NDArray[np.int32]], NDArray[np.int64]]
"""Indexes of rows from the source of each, as `dataset/mixture.py` makes them."""


@dataclass(frozen=True)
class Selection:
    """What is used of the examples for one split."""

    split: Split
    examples: Examples
    pieces: Pieces
    """Each at most as long as the context, of a pair either half; several of one example where it is cut into windows
    or repeated."""
    num_rows: int
    num_truncated: int
    context_length: int
    partners: NDArray[np.int64] | None = None
    """Of rated rows, whose answer stands in the mismatched conversation of each, as in `dataset/mismatched.py`."""

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence: each conversation of a pair may be as long as the context."""
        return self.context_length * self.examples.num_members

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that each piece takes of a sequence, with its mismatched conversation; shape (pieces,)."""
        if self.partners is None:
            return self.pieces.lengths
        return self.pieces.lengths + mismatched_lengths(self.examples, self.partners)[self.pieces.indexes]

    @property
    def rated(self) -> RatedStats | None:
        """How the answers are rated, each as often as it is used."""
        if self.partners is None or self.examples.are_desirable is None:
            return None
        used = self.pieces.indexes
        num_desirable = int(np.count_nonzero(self.examples.are_desirable[used]))
        return RatedStats(
            desirable=num_desirable,
            undesirable=len(used) - num_desirable,
            without_mismatched=int(np.count_nonzero(self.partners[used] == NONE)),
        )

    def batch(self, places: NDArray[np.int64], num_members: NDArray[np.int64]) -> SampleBatch:
        """Samples of some pieces, so many in each."""
        examples, pieces = self.examples, self.pieces[places]
        together = examples.num_members * num_members
        if self.partners is None or examples.are_desirable is None:
            return SampleBatch(examples.batch(examples.members(pieces)), together, examples.num_members == 2)
        conversations = rated_conversations(examples, pieces.indexes, self.partners)
        labels = np.repeat(examples.are_desirable[pieces.indexes], 2)
        return SampleBatch(examples.batch(conversations), together, is_paired=True, are_desirable=labels)


def select(
    split: Split,
    examples: Examples,
    context_length: int,
    over_length: OverLength,
    unused: UnusedRows,
    mix: Mix | None = None,
    seed: int = 0,
) -> Selection:
    """The examples that fit or are made to, each as often as `mix` says. By `seed` rated rows get answers of others.

    Raises `DataError` where none is left, or where the job wants all to fit.
    """
    is_of_split = examples.is_validation == (split == "valid")
    is_too_long = (examples.longest_members > context_length) & ~examples.is_windowed & is_of_split
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
    rows = np.setdiff1d(np.flatnonzero(is_of_split), left_out)
    if len(rows) == 0:
        lengths = examples.longest_members[is_of_split]
        summary = summarise_lengths(lengths) if len(lengths) else None
        raise DataError(_nothing_fits(split, summary, context_length))
    if mix is not None:
        mixed = rows[mix(examples.sources[rows])]
        unused.add(BEYOND_SHARE, _rows(examples, np.setdiff1d(rows, mixed), BEYOND_SHARE))
        rows = mixed
    distinct = np.unique(rows)
    num_truncated = int(np.count_nonzero(is_too_long[distinct]))
    pieces = _pieces(examples, rows, context_length)
    is_rated = examples.are_desirable is not None
    partners = draw_partners(examples, distinct, context_length, seed) if is_rated else None
    return Selection(split, examples, pieces, len(distinct), num_truncated, context_length, partners)


def write_selection(selection: Selection, packing: bool, folder: Path) -> SplitStats:
    """Pack the pieces, or leave each alone, and write them to shards in `folder`."""
    pieces, lengths, capacity = selection.pieces, selection.lengths, selection.capacity
    num_tokens = int(lengths.sum())
    packs = pack(lengths, capacity) if packing else ([index] for index in range(len(pieces)))
    usual_tokens = capacity if packing else -(-num_tokens // len(pieces))
    shards = _write_shards(selection, packs, max(1, TOKENS_PER_SHARD // usual_tokens), folder)
    num_samples = sum(shard.samples for shard in shards)
    return SplitStats(
        rows=selection.num_rows,
        examples=len(pieces) * selection.examples.num_members,
        samples=num_samples,
        tokens=num_tokens,
        trained_tokens=sum(shard.trained_tokens for shard in shards),
        packing_efficiency=num_tokens / (num_samples * capacity),
        longest_sample=max(shard.longest for shard in shards),
        most_trained=max(shard.most_trained for shard in shards),
        rated=selection.rated,
    )


@dataclass(frozen=True)
class _Shard:
    """What one shard holds."""

    samples: int
    trained_tokens: int
    longest: int
    most_trained: int


def _write_shards(
    selection: Selection, packs: Iterator[list[int]], samples_per_shard: int, folder: Path
) -> list[_Shard]:
    """Write shards of so many samples, a few at once."""
    written: list[_Shard] = []
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        pending: deque[Future[_Shard]] = deque()
        for number in count():
            members = list(islice(packs, samples_per_shard))
            if not members:
                break
            if len(pending) > SHARDS_AT_ONCE:
                written.append(pending.popleft().result())
            path = folder / shard_name(selection.split, number)
            pending.append(threads.submit(_write_one, selection, members, path))
        return written + [shard.result() for shard in pending]


def _write_one(selection: Selection, packs: list[list[int]], path: Path) -> _Shard:
    num_trained, num_tokens = [], []

    def batches() -> Iterator[SampleBatch]:
        for start in range(0, len(packs), SAMPLES_PER_BATCH):
            members = packs[start : start + SAMPLES_PER_BATCH]
            places = np.fromiter(chain.from_iterable(members), np.int64)
            batch = selection.batch(places, np.array([len(one) for one in members], np.int64))
            samples = batch.learnt.samples
            num_trained.append(samples.sums(samples.weights > 0))
            num_tokens.append(np.diff(samples.offsets))
            yield batch

    write_shard(path, batches())
    trained, tokens = np.concatenate(num_trained), np.concatenate(num_tokens)
    return _Shard(len(packs), int(trained.sum()), int(tokens.max()), int(trained.max()))


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
    return Pieces(np.repeat(rows, num_pieces), starts, np.minimum(left, context_length * examples.num_members))


def _rows(examples: Examples, indexes: NDArray[np.int64], reason: str) -> list[UnusedRow]:
    return [UnusedRow(uri, line, reason) for uri, line in examples.places(indexes)]


def _too_long_rows(examples: Examples, indexes: NDArray[np.int64], context_length: int) -> list[UnusedRow]:
    places = zip(examples.places(indexes), examples.longest_members[indexes].tolist(), strict=True)
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

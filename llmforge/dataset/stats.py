"""What the data stage did, in numbers: written beside the shards, printed, and shown in the report.

Arithmetic on lengths and counts that are handed in; rows in = rows used + rows dropped, by reason, always.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llmforge.config.base import StrictModel


class LengthSummary(StrictModel):
    """Lengths of examples in tokens."""

    shortest: int
    median: int
    p95: int
    longest: int


class HistogramBin(StrictModel):
    """How many examples have a length from `shortest` to `longest`, both included."""

    shortest: int
    longest: int
    count: int


class RatedStats(StrictModel):
    """How many answers of a split are rated in which way."""

    desirable: int
    undesirable: int
    without_mismatched: int
    """Those for whose prompt no answer of another row was found; they are left out of the reference point."""

    def describe(self) -> str:
        """Part of a line for the terminal."""
        rest = f", {self.without_mismatched} without a mismatched answer" if self.without_mismatched else ""
        return f"{self.desirable} desirable, {self.undesirable} undesirable{rest}"


class SplitStats(StrictModel):
    """One split of a prepared dataset."""

    rows: int
    """Rows that are used."""
    examples: int
    """More than rows where long texts are cut into windows or rows are repeated, and where a row is a pair of them or
    has a mismatched one beside it."""
    samples: int
    """Sequences given to the model: packs, or examples where packing is off."""
    tokens: int
    trained_tokens: int
    packing_efficiency: float
    """Share of the positions of all sequences, of `context_length` or for pairs twice that, that holds tokens."""
    longest_sample: int
    """Tokens of the longest sequence, as of `trained_tokens` without those of mismatched conversations."""
    most_trained: int
    """Most trained tokens of one sequence."""
    rated: RatedStats | None = None
    """Where answers are rated."""
    labels: dict[str, int] = Field(default_factory=dict)
    """Examples of every label, where the job trains a classifier."""


class CheckTotals(StrictModel):
    """What was looked at in every row that can be trained on; rows that failed are dropped or refused as invalid."""

    rows: int
    prompts: int
    """Prompts, one for each answer, that were found to be the begin of the training tokens."""
    straddled: int
    """Rows in which a program that tokenizes the joined text would make one token across the begin of an answer."""
    ends_with_terminator: int
    """Rows whose last trained token is a control token, so that the model can learn to stop."""

    def plus(self, *, rows: int, prompts: int, straddled: int, ends_with_terminator: int) -> "CheckTotals":
        """Totals with further rows."""
        return CheckTotals(
            rows=self.rows + rows,
            prompts=self.prompts + prompts,
            straddled=self.straddled + straddled,
            ends_with_terminator=self.ends_with_terminator + ends_with_terminator,
        )

    def describe(self, *, has_terminators: bool = True) -> str:
        """One line for the terminal; `has_terminators`: answers are to end with a control token."""
        line = f"checks: {self.prompts} prompts in {self.rows} rows are the begin of what is trained"
        if has_terminators:
            line += f", {self.ends_with_terminator} rows end with a trained control token"
        if self.straddled:
            line += (
                f"; {self.straddled} rows would be tokenized otherwise by a program that joins prompt and answer first"
            )
        return line


class DatasetStats(StrictModel):
    """The whole prepared dataset."""

    rows_in: int
    rows_used: int
    dropped: dict[str, int]
    """Reason to number of rows."""
    truncated: int = 0
    """Rows cut to the context length: their end, with the terminator of the last answer, is not trained."""
    checks: CheckTotals
    context_length: int
    lengths: LengthSummary
    """Of all rows that can be trained on, also those that are too long; of a pair, the longer conversation."""
    length_histogram: tuple[HistogramBin, ...]
    """Of the same rows."""
    train: SplitStats
    valid: SplitStats | None = None
    is_paired: bool = False
    """Whether the rows are pairs of a chosen and a rejected answer."""

    def what(self, split: SplitStats) -> str:
        """What a split holds, counted."""
        if split.rated is not None:
            return f"{split.examples // 2} answers ({split.rated.describe()})"
        return f"{split.examples // 2} pairs" if self.is_paired else f"{split.examples} examples"

    @property
    def rows_dropped(self) -> int:
        """All rows that are not used."""
        return sum(self.dropped.values())

    def total(self, what: Literal["examples", "samples", "tokens", "trained_tokens"]) -> int:
        """A count of the training and the validation split together."""
        splits = [self.train] if self.valid is None else [self.train, self.valid]
        return sum(int(getattr(split, what)) for split in splits)

    def describe_checks(self) -> str:
        """One line for the terminal."""
        return self.checks.describe(has_terminators=not self.train.labels)

    def describe(self) -> str:
        """A few lines for the terminal."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        lines = [f"rows: {self.rows_in} in, {self.rows_used} used, dropped: {dropped}"]
        if self.truncated:
            lines.append(f"truncated: {self.truncated} rows are cut to context_length, and their end is not trained")
        for name, split in (("train", self.train), ("valid", self.valid)):
            if split is not None:
                lines.append(
                    f"{name}: {self.what(split)} in {split.samples} sequences, {split.tokens} tokens, "
                    f"{split.trained_tokens} trained ({split.trained_tokens / split.tokens:.0%}), "
                    f"{split.packing_efficiency:.1%} of the positions filled"
                )
                if split.labels:
                    counts = ", ".join(f"{count} {label}" for label, count in split.labels.items())
                    lines.append(f"{name}: labels: {counts}")
        lengths = self.lengths
        lines.append(
            f"lengths in tokens: median {lengths.median}, 95 % up to {lengths.p95}, longest {lengths.longest}; "
            f"context_length {self.context_length}"
        )
        lines.append(self.describe_checks())
        return "\n".join(lines)


def summarise_lengths(lengths: Sequence[int] | NDArray[np.int64]) -> LengthSummary:
    """Shortest, median, 95th percentile (each a length that occurs) and longest of at least one length."""
    shortest, median, p95, longest = np.quantile(lengths, [0.0, 0.5, 0.95, 1.0], method="inverted_cdf")
    return LengthSummary(shortest=int(shortest), median=int(median), p95=int(p95), longest=int(longest))


def length_histogram(lengths: Sequence[int] | NDArray[np.int64], num_bins: int = 24) -> tuple[HistogramBin, ...]:
    """Counts of at least one length in at most `num_bins` bins, without the empty ones at both ends.

    A power of two wide, as a default `context_length` is, so that it falls between two bins. They reach to the 99th
    percentile; the last takes all that is longer, since one very long row would leave the rest a single bar.
    """
    values = np.asarray(lengths)
    reach, longest = np.quantile(values, [0.99, 1.0], method="inverted_cdf").astype(np.int64)
    width = 1 << max(0, int(-(-reach // num_bins) - 1).bit_length())
    num_used = int(-(-reach // width))
    counts = np.bincount(np.minimum((values - 1) // width, num_used - 1), minlength=num_used)
    bins = [
        HistogramBin(shortest=index * width + 1, longest=(index + 1) * width, count=int(count))
        for index, count in enumerate(counts)
    ]
    bins[-1] = bins[-1].model_copy(update={"longest": max(bins[-1].longest, int(longest))})
    return tuple(bins[int(np.flatnonzero(counts)[0]) :])

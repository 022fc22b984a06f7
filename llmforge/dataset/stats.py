"""What the data stage did, in numbers: written beside the shards, printed, and shown in the report.

Arithmetic on lengths and counts that are handed in; rows in = rows used + rows dropped, by reason, always.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmforge.config.base import StrictModel


class LengthSummary(StrictModel):
    """Lengths of examples in tokens."""

    shortest: int
    median: int
    p95: int
    longest: int


class SplitStats(StrictModel):
    """One split of a prepared dataset."""

    examples: int
    samples: int
    """Sequences given to the model: packs, or examples where packing is off."""
    tokens: int
    trained_tokens: int
    packing_efficiency: float
    """Share of `samples * context_length` that holds tokens."""


class DatasetStats(StrictModel):
    """The whole prepared dataset."""

    rows_in: int
    rows_used: int
    dropped: dict[str, int]
    """Reason to number of rows."""
    context_length: int
    lengths: LengthSummary
    train: SplitStats
    valid: SplitStats | None = None

    @property
    def rows_dropped(self) -> int:
        """All rows that are not used."""
        return sum(self.dropped.values())

    def describe(self) -> str:
        """A few lines for the terminal."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        lines = [f"rows: {self.rows_in} in, {self.rows_used} used, dropped: {dropped}"]
        for name, split in (("train", self.train), ("valid", self.valid)):
            if split is not None:
                lines.append(
                    f"{name}: {split.examples} examples in {split.samples} sequences, {split.tokens} tokens, "
                    f"{split.trained_tokens} trained ({split.trained_tokens / split.tokens:.0%}), "
                    f"{split.packing_efficiency:.1%} of the positions filled"
                )
        lengths = self.lengths
        lines.append(
            f"lengths in tokens: median {lengths.median}, 95 % up to {lengths.p95}, longest {lengths.longest}; "
            f"context_length {self.context_length}"
        )
        return "\n".join(lines)


def summarise_lengths(lengths: Sequence[int] | NDArray[np.int64]) -> LengthSummary:
    """Shortest, median, 95th percentile (each a length that occurs) and longest of at least one length."""
    shortest, median, p95, longest = np.quantile(lengths, [0.0, 0.5, 0.95, 1.0], method="inverted_cdf")
    return LengthSummary(shortest=int(shortest), median=int(median), p95=int(p95), longest=int(longest))

"""Conversations as tokens: what the data stage makes of rows, one by one or many in flat buffers.

Masks are positions, never token values: a label is -100 where no loss is taken, whatever the id there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100
"""The label of a position without loss, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as tokens. `labels[i]` is `input_ids[i]` where position i is trained, else -100."""

    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    labels: NDArray[np.int32]
    """Shape (tokens,). The first is always -100: nothing stands before it that could predict it."""
    weights: NDArray[np.float32] | None = None
    """Shape (tokens,), factors of the loss, 0 where there is none; None where all trained positions weigh 1."""

    @property
    def num_trained_tokens(self) -> int:
        """How many positions carry loss."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))


@dataclass(frozen=True)
class ExampleBatch:
    """Examples in flat buffers, one behind the other; also a sequence of `Example`."""

    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    weights: NDArray[np.float32]
    """Shape (tokens,): factor of the loss at each position, 0 where there is none."""
    offsets: NDArray[np.int64]
    """Shape (examples + 1,): where each example begins and ends."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Shape (tokens,): the id where a position is trained, else -100."""
        return np.where(self.weights > 0, self.input_ids, np.int32(IGNORED_LABEL)).astype(np.int32)

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of `values`, shape (tokens,), over each example; shape (examples,). Counts where they are marks."""
        counts = values.dtype == np.bool_
        is_there = np.diff(self.offsets) > 0  # an empty one has no place of its own in the buffer
        sums = np.zeros(len(self), np.int64 if counts else np.float64)
        if is_there.any():
            numbers = values.view(np.uint8) if counts else values
            sums[is_there] = np.add.reduceat(numbers, self.offsets[:-1][is_there], dtype=sums.dtype)
        return sums

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        place = slice(self.offsets[:-1][index], self.offsets[1:][index])
        ids, weights = self.input_ids[place], self.weights[place]
        labels = np.where(weights > 0, ids, np.int32(IGNORED_LABEL)).astype(np.int32)
        return Example(ids, labels, weights if is_weighted(weights).any() else None)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def is_weighted(weights: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a weight is neither 0 nor 1."""
    weighted: NDArray[np.bool_] = (weights != 0) & (weights != 1)
    return weighted

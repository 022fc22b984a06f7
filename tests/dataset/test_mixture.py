"""How often rows are repeated or left out for the shares of their sources."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmforge.config.data import MixtureStrategy
from llmforge.dataset.mixture import mix


def mixed(counts: list[int], weights: list[float | None], strategy: MixtureStrategy, seed: int = 0) -> list[list[int]]:
    """How often each row of each source occurs."""
    sources = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    occurs = Counter(mix(sources, weights, strategy, seed).tolist())
    return [[occurs[row] for row in np.flatnonzero(sources == source)] for source in range(len(counts))]


def test_without_weights_every_row_occurs_once() -> None:
    for strategy in ("all_exhausted", "first_exhausted"):
        assert mixed([3, 1, 4], [None, None, None], strategy) == [[1] * 3, [1], [1] * 4]


@pytest.mark.parametrize(
    ("counts", "weights", "repeated", "left_out"),
    [
        ([6, 3], [1, 1], [6, 6], [3, 3]),
        ([6, 3], [2, 1], [6, 3], [6, 3]),
        ([10, 1], [None, 2], [10, 2], [5, 1]),
        ([8, 2], [0.5, 0.5], [8, 8], [2, 2]),
        ([4, 6], [0.9, 0.1], [54, 6], [4, 0.44]),
        ([5, 0, 5], [1, 7, 1], [5, 0, 5], [5, 0, 5]),
    ],
)
def test_sources_have_the_shares_of_their_weights(
    counts: list[int], weights: list[float | None], repeated: list[float], left_out: list[float]
) -> None:
    found = mixed(counts, weights, "all_exhausted")
    assert [sum(rows) for rows in found] == repeated
    assert all(max(rows) - min(rows) <= 1 and min(rows) >= 1 for rows in found if rows)
    found = mixed(counts, weights, "first_exhausted")
    assert [sum(rows) for rows in found] == [max(1, round(total)) if total else 0 for total in left_out]
    assert all(max(rows) <= 1 for rows in found if rows)


def test_the_rest_is_drawn_by_the_seed() -> None:
    drawn = [mixed([100, 50], [3, 1], "first_exhausted", seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [[sum(rows) for rows in found] for found in drawn] == [[100, 33]] * 3


def test_rows_are_grouped_by_source_wherever_they_stand() -> None:
    sources = np.array([1, 0, 1, 0], dtype=np.int32)
    assert mix(sources, [1.0, 2.0], "all_exhausted", 0).tolist() == [1, 3, 0, 2, 0, 2]


def test_no_row_at_all() -> None:
    assert mix(np.zeros(0, np.int32), [1.0, None], "all_exhausted", 0).tolist() == []

"""The numbers of the data stage and how they are told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.dataset.stats import (
    CheckTotals,
    DatasetStats,
    HistogramBin,
    LengthSummary,
    SplitStats,
    length_histogram,
    summarise_lengths,
)

TRAIN = SplitStats(
    rows=90,
    examples=90,
    samples=10,
    tokens=4000,
    trained_tokens=1000,
    packing_efficiency=0.9765,
    longest_sample=510,
    most_trained=200,
)
VALID = SplitStats(
    rows=5,
    examples=5,
    samples=5,
    tokens=300,
    trained_tokens=99,
    packing_efficiency=0.5,
    longest_sample=80,
    most_trained=40,
)
STATS = DatasetStats(
    rows_in=100,
    rows_used=95,
    dropped={"invalid": 3, "no trained token": 2},
    checks=CheckTotals(rows=97, prompts=130, straddled=0, ends_with_terminator=96),
    context_length=512,
    lengths=LengthSummary(shortest=3, median=40, p95=200, longest=511),
    length_histogram=(HistogramBin(shortest=1, longest=512, count=97),),
    train=TRAIN,
    valid=VALID,
)


def test_lines_for_the_terminal() -> None:
    assert STATS.describe().splitlines() == [
        "rows: 100 in, 95 used, dropped: 3 invalid, 2 no trained token",
        "train: 90 examples in 10 sequences, 4000 tokens, 1000 trained (25%), 97.7% of the positions filled",
        "valid: 5 examples in 5 sequences, 300 tokens, 99 trained (33%), 50.0% of the positions filled",
        "lengths in tokens: median 40, 95 % up to 200, longest 511; context_length 512",
        "checks: 130 prompts in 97 rows are the begin of what is trained, 96 rows end with a trained control token",
    ]
    assert STATS.rows_dropped == 5


def test_pairs_are_told_as_pairs() -> None:
    """Each of two examples."""
    train = TRAIN.model_copy(update={"examples": 180})
    stats = STATS.model_copy(update={"train": train, "valid": None, "is_paired": True})
    assert stats.describe().splitlines()[1].startswith("train: 90 pairs in 10 sequences, 4000 tokens, 1000 trained")


def test_rows_that_others_would_tokenize_otherwise_are_told() -> None:
    more = STATS.checks.plus(rows=1, prompts=2, straddled=3, ends_with_terminator=4)
    assert more == CheckTotals(rows=98, prompts=132, straddled=3, ends_with_terminator=100)
    assert more.describe().endswith(
        "; 3 rows would be tokenized otherwise by a program that joins prompt and answer first"
    )


def test_nothing_dropped_and_nothing_held_out() -> None:
    stats = STATS.model_copy(update={"dropped": {}, "valid": None})
    assert stats.describe().splitlines()[0] == "rows: 100 in, 95 used, dropped: none"
    assert len(stats.describe().splitlines()) == 4
    assert stats.rows_dropped == 0


def test_they_travel_as_json() -> None:
    assert DatasetStats.model_validate_json(STATS.model_dump_json()) == STATS


@pytest.mark.parametrize(
    ("lengths", "summary"),
    [
        ([7], (7, 7, 7, 7)),
        ([1, 2], (1, 1, 2, 2)),
        (list(range(1, 101)), (1, 50, 95, 100)),
        (list(range(100, 0, -1)), (1, 50, 95, 100)),
        ([1] * 95 + [1000] * 5, (1, 1, 1, 1000)),
        ([1] * 94 + [1000] * 6, (1, 1, 1000, 1000)),
    ],
)
def test_summaries(lengths: list[int], summary: tuple[int, int, int, int]) -> None:
    shortest, median, p95, longest = summary
    expected = LengthSummary(shortest=shortest, median=median, p95=p95, longest=longest)
    assert summarise_lengths(lengths) == expected
    assert summarise_lengths(np.array(lengths)) == expected


@given(st.lists(st.integers(1, 5000), min_size=1))
def test_every_summary_is_a_length_that_occurs(lengths: list[int]) -> None:
    summary = summarise_lengths(lengths)
    assert {summary.shortest, summary.median, summary.p95, summary.longest} <= set(lengths)
    assert sum(length <= summary.p95 for length in lengths) >= 0.95 * len(lengths)
    assert sum(length < summary.p95 for length in lengths) < 0.95 * len(lengths)


def bins(lengths: list[int], num_bins: int = 24) -> list[tuple[int, int, int]]:
    return [(found.shortest, found.longest, found.count) for found in length_histogram(lengths, num_bins)]


def test_a_histogram() -> None:
    assert bins([1, 2, 3, 4, 5, 6, 7, 8, 8], num_bins=4) == [(1, 2, 2), (3, 4, 2), (5, 6, 2), (7, 8, 3)]
    assert bins([7]) == [(7, 7, 1)]
    assert bins([1]) == [(1, 1, 1)]


def test_empty_bins_at_the_begin_are_left_out() -> None:
    assert bins([100, 101, 128], num_bins=4) == [(97, 128, 3)]


def test_the_last_bin_takes_what_is_far_beyond() -> None:
    assert bins([*range(1, 101), *range(1, 101), 9000], num_bins=4)[-1] == (97, 9000, 9)


@given(st.lists(st.integers(1, 5000), min_size=1), st.integers(1, 30))
def test_every_length_is_in_one_bin(lengths: list[int], num_bins: int) -> None:
    found = bins(lengths, num_bins)
    assert len(found) <= num_bins
    for shortest, longest, count in found:
        assert sum(shortest <= length <= longest for length in lengths) == count
    assert sum(count for _, _, count in found) == len(lengths)
    assert all(one[1] + 1 == other[0] for one, other in pairwise(found))
    widths = {longest - shortest + 1 for shortest, longest, _ in found[:-1]}
    assert all(width.bit_count() == 1 for width in widths) and len(widths) <= 1

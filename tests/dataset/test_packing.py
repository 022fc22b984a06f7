"""Packs: nothing lost, nothing too long, always the same, and nearly as dense as can be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.dataset import packing
from llmforge.dataset.packing import WINDOW

LENGTHS_AND_CAPACITY = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity))
)


def pack(lengths: list[int], capacity: int, window: int = WINDOW) -> Iterator[list[int]]:
    return packing.pack(np.array(lengths, dtype=np.int64), capacity, window)


@given(lengths_and_capacity=LENGTHS_AND_CAPACITY, window=st.integers(1, 70))
def test_every_example_once_and_no_pack_too_long(lengths_and_capacity: tuple[list[int], int], window: int) -> None:
    lengths, capacity = lengths_and_capacity
    packs = list(pack(lengths, capacity, window))
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in packs)
    assert all(members == sorted(members) for members in packs)
    assert [members[0] for members in packs] == sorted(members[0] for members in packs)
    assert all(members[0] // window == members[-1] // window for members in packs)
    assert list(pack(lengths, capacity, window)) == packs


@given(LENGTHS_AND_CAPACITY)
def test_within_a_window_it_is_best_fit_decreasing(lengths_and_capacity: tuple[list[int], int]) -> None:
    lengths, capacity = lengths_and_capacity
    assert list(pack(lengths, capacity, window=100)) == best_fit_decreasing(lengths, capacity)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The algorithm in the plainest way: into the fullest pack with room, the oldest of equals."""
    packs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = [capacity - sum(lengths[member] for member in members) for members in packs]
        fitting = [number for number in range(len(packs)) if room[number] >= lengths[index]]
        if fitting:
            packs[min(fitting, key=lambda number: room[number])].append(index)
        else:
            packs.append([index])
    return sorted(sorted(members) for members in packs)


def test_known_packs() -> None:
    assert list(pack([], 8)) == []
    assert list(pack([8, 8], 8)) == [[0], [1]]
    assert list(pack([3, 5, 4, 4, 8], 8)) == [[0, 1], [2, 3], [4]]
    assert list(pack([3, 5, 4, 4, 8], 8, window=1)) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("median", [100, 400])
def test_density_within_a_percent_of_packing_all_at_once(median: int) -> None:
    """Lengths like those of real chats: log-normal, cut at the context length."""
    capacity, count = 2048, 20_000
    draws = np.random.default_rng(0).lognormal(np.log(median), 0.9, count)
    lengths: list[int] = np.clip(draws, 1, capacity).astype(int).tolist()

    def efficiency(window: int) -> float:
        return sum(lengths) / (capacity * sum(1 for _ in pack(lengths, capacity, window)))

    at_once = efficiency(count)
    assert at_once > 0.99
    assert efficiency(WINDOW) > at_once - 0.01

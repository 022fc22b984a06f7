"""State in 8 bits: the same bits on the same workers, and the nearest ones on others."""

from __future__ import annotations

import pytest
import torch

from llmforge.config.training import AdamW8bit
from llmforge.train.optim import build_optimizer
from llmforge.train.quantized_state import Fragment, State, is_quantized, restore_partitions, take_partitions

SIZES = {"one": 5000, "other": 7003, "small": 100}
WHOLE = {"one": Fragment(0, 0, 0, 5000), "other": Fragment(0, 5000, 0, 7003), "small": Fragment(1, 0, 0, 100)}
"""One worker: matrices in a partition, and a vector, which stays in fp32, in another."""
HALVES = (
    {"one": Fragment(0, 0, 0, 5000), "other": Fragment(0, 5000, 0, 1002), "small": Fragment(1, 0, 0, 50)},
    {"other": Fragment(0, 0, 1002, 6001), "small": Fragment(1, 0, 50, 50)},
)
HALF_SIZES = [6002, 50]


def states_of(sizes: list[int], num_steps: int) -> list[State]:
    """What AdamW in 8 bits keeps of partitions of these sizes."""
    generator = torch.Generator().manual_seed(sum(sizes))
    partitions = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    optimizer = build_optimizer(partitions, AdamW8bit(type="adamw_8bit"), 1e-3)
    assert is_quantized(optimizer)
    for _ in range(num_steps):
        for partition in partitions:
            partition.grad = torch.randn(len(partition), generator=generator)
        optimizer.step()
    return [optimizer.state[partition] for partition in partitions]


def values(states: list[State], partition: int, moment: int) -> torch.Tensor:
    """A moment in fp32, by bitsandbytes' own means."""
    from_blocks = pytest.importorskip("bitsandbytes.functional").dequantize_blockwise
    state = states[partition]
    codes, largest, table = state[f"state{moment}"], state.get(f"absmax{moment}"), state.get(f"qmap{moment}")
    assert isinstance(codes, torch.Tensor)
    if largest is None:
        return codes
    dequantized: torch.Tensor = from_blocks(codes, absmax=largest, code=table, blocksize=256)
    return dequantized


def are_equal(one: list[State], other: list[State]) -> bool:
    pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a if key != "step"]
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def test_the_same_workers_go_on_with_the_same_bits() -> None:
    states, fresh = states_of([12003, 100], 3), states_of([12003, 100], 1)
    assert not are_equal(fresh, states)
    restore_partitions(take_partitions(0, states, WHOLE), 0, fresh, WHOLE)
    assert are_equal(fresh, states)


def test_another_number_of_workers_goes_on_with_the_nearest_codes() -> None:
    """From one worker to two: each moment is where it belongs, to within half a code of its block."""
    states, rounded = states_of([12003, 100], 3), [states_of(HALF_SIZES, 1) for _ in HALVES]
    saved = take_partitions(0, states, WHOLE)
    for rank, fragments in enumerate(HALVES):
        restore_partitions(saved, rank, rounded[rank], fragments)
    for moment in (1, 2):
        expected = values(states, 0, moment)
        found = torch.cat([values(rounded[0], 0, moment), values(rounded[1], 0, moment)[:6001]])
        # Codes of eight bits are at most 1/32 of the largest number of their block apart.
        assert (found - expected).abs().max() < expected.abs().max() / 64
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999
        small = torch.cat([values(state, 1, moment) for state in rounded])
        assert torch.equal(small, values(states, 1, moment))


def test_from_two_workers_to_one() -> None:
    shares = [states_of(HALF_SIZES, steps) for steps in (3, 4)]
    saved = {key: t for rank in (0, 1) for key, t in take_partitions(rank, shares[rank], HALVES[rank]).items()}
    whole = states_of([12003, 100], 1)
    restore_partitions(saved, 0, whole, WHOLE)
    for moment in (1, 2):
        expected = torch.cat([values(shares[0], 0, moment), values(shares[1], 0, moment)[:6001]])
        found = values(whole, 0, moment)
        assert (found - expected).abs().max() < expected.abs().max() / 64
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999


def test_before_the_first_update_there_is_nothing() -> None:
    assert take_partitions(0, [{}, {}], WHOLE) == {}


def test_other_optimizers_keep_no_codes() -> None:
    assert not is_quantized(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]))

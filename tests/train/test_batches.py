"""Which samples a step takes, whoever computes them, and how they are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.shards import Sample, SampleReader, sample_order
from llmforge.train.batches import EMPTY, EMPTY_SAMPLE, Batch, Layout, TrainingBatches, collate, plan_steps
from tests.dataset.samples import join_examples, write_samples

NUMBER_STRIDE = 100
NUM_SAMPLES = (1, 5, 12, 23)
Shape = tuple[int, int, int]
"""Micro-batches, workers, sequences."""


def sample(number: int) -> Sample:
    """Two examples; the first token tells the sample's number (from 1), so 0 is what padding starts with."""
    ids = np.arange(2 + number % 4, dtype=np.int32) + np.int32(NUMBER_STRIDE * number)
    labels = np.where(ids % 2 == 0, ids, np.int32(IGNORED_LABEL))
    labels[0] = IGNORED_LABEL
    tail = np.array([1, 2, 3], dtype=np.int32)
    return join_examples([Example(ids, labels), Example(tail, np.array([IGNORED_LABEL, 2, 3], dtype=np.int32))])


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, SampleReader]:
    """By number of samples."""
    folder: Path = tmp_path_factory.mktemp("samples")
    for count in NUM_SAMPLES:
        write_samples(folder / f"{count}.arrow", [sample(number) for number in range(1, count + 1)])
    return {count: SampleReader([folder / f"{count}.arrow"]) for count in NUM_SAMPLES}


def ranks(
    reader: SampleReader, shape: Shape, *, seed: int = 0, shuffle: bool = True, num_sequences: int | None = None
) -> list[TrainingBatches]:
    """What all ranks of one training see, whose steps take `num_sequences`, or all that the shape has room for."""
    _, num_workers, micro_batch_size = shape
    return [
        TrainingBatches(
            reader,
            micro_batch_size=micro_batch_size,
            sequences_per_step=num_sequences or int(np.prod(shape)),
            rank=rank,
            num_workers=num_workers,
            seed=seed,
            shuffle=shuffle,
        )
        for rank in range(num_workers)
    ]


def num_trained(batch: Batch) -> int:
    return len(batch.targets) if batch.weights is None else int((batch.weights > 0).sum())


def numbers(batches: Sequence[Batch]) -> list[int]:
    """The samples in micro-batches, counted from 0; empty ones left out."""
    first_tokens = [int(token) for batch in batches for token in batch.input_ids[:, 0]]
    return [token // NUMBER_STRIDE - 1 for token in first_tokens if token != 0]


def taken(workers: Sequence[TrainingBatches], step: int) -> list[int]:
    """The samples that all ranks together take in a step."""
    return [number for worker in workers for number in numbers(worker.step(step).micro_batches)]


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(
    count=st.sampled_from(NUM_SAMPLES),
    shape=shapes,
    other=st.permutations((0, 1, 2)),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_once_an_epoch_and_a_step_takes_the_same_whatever_the_split(
    readers: dict[int, SampleReader], count: int, shape: Shape, other: list[int], seed: int, epoch: int
) -> None:
    reader, global_batch = readers[count], int(np.prod(shape))
    workers = ranks(reader, shape, seed=seed)
    swapped = ranks(reader, (shape[other[0]], shape[other[1]], shape[other[2]]), seed=seed)
    alone = ranks(reader, (global_batch, 1, 1), seed=seed)[0]
    order = sample_order(count, seed, epoch).tolist()
    num_steps = workers[0].steps_per_epoch
    assert num_steps == -(-count // global_batch)
    for position in range(num_steps):
        step = epoch * num_steps + position
        expected = order[position * global_batch : (position + 1) * global_batch]
        assert numbers(alone.step(step).micro_batches) == expected
        assert sorted(taken(workers, step)) == sorted(taken(swapped, step)) == sorted(expected)


@given(count=st.sampled_from(NUM_SAMPLES), shape=shapes, step=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_every_rank_knows_the_counts_of_the_global_batch(
    readers: dict[int, SampleReader], count: int, shape: Shape, step: int
) -> None:
    steps = [worker.step(step) for worker in ranks(readers[count], shape)]
    batches = [batch for one in steps for batch in one.micro_batches]
    trained = sum(num_trained(batch) for batch in batches)
    tokens = sum(readers[count].num_tokens[number] for number in numbers(batches))
    assert {(one.num_trained_tokens, one.num_tokens) for one in steps} == {(trained, tokens)}


@given(count=st.sampled_from(NUM_SAMPLES), shape=shapes)
@settings(max_examples=40, deadline=None)
def test_all_ranks_have_equally_many_rows_also_in_the_last_step(
    readers: dict[int, SampleReader], count: int, shape: Shape
) -> None:
    """Else a rank would wait for ever in a collective operation."""
    num_micro_batches, _, micro_batch_size = shape
    workers = ranks(readers[count], shape)
    for worker in workers:
        rows = [len(batch.input_ids) for batch in worker.step(worker.steps_per_epoch - 1).micro_batches]
        assert rows == [micro_batch_size] * num_micro_batches


def test_a_step_does_not_depend_on_those_before_it(readers: dict[int, SampleReader]) -> None:
    """So a run may go on anywhere."""
    shape = (2, 2, 2)
    walked = ranks(readers[23], shape, seed=7)[1]
    for step in range(9):
        fresh = ranks(readers[23], shape, seed=7)[1].step(step)
        for one, other in zip(walked.step(step).micro_batches, fresh.micro_batches, strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.targets, other.targets)


def test_epochs_differ_when_shuffled_and_not_otherwise(readers: dict[int, SampleReader]) -> None:
    shape = (1, 1, 23)
    shuffled = ranks(readers[23], shape, seed=3)
    assert taken(shuffled, 0) != taken(shuffled, 1) != list(range(23))
    assert taken(shuffled, 0) != taken(ranks(readers[23], shape, seed=4), 0)
    in_order = ranks(readers[23], shape, shuffle=False)
    assert taken(in_order, 0) == taken(in_order, 1) == list(range(23))


def test_the_last_step_is_filled_up_with_what_counts_for_nothing(readers: dict[int, SampleReader]) -> None:
    workers = ranks(readers[5], (1, 2, 2), shuffle=False)
    assert workers[0].steps_per_epoch == 2
    first, second = (worker.step(1).micro_batches[0] for worker in workers)
    assert numbers([first]) == [4]
    assert (first.positions < first.input_ids.shape[1]).all()  # nothing is trained in the second row
    assert second.input_ids.tolist() == [[0], [0]]
    assert num_trained(second) == 0


@pytest.mark.parametrize(("num_workers", "num_micro_batches"), [(1, 8), (2, 4), (3, 3), (5, 2), (8, 1), (11, 1)])
def test_any_number_of_workers_takes_the_same_steps(
    readers: dict[int, SampleReader], num_workers: int, num_micro_batches: int
) -> None:
    """Also one by which the sequences of a step cannot be divided."""
    workers = ranks(readers[23], (num_micro_batches, num_workers, 1), seed=5, num_sequences=8)
    alone = ranks(readers[23], (8, 1, 1), seed=5)[0]
    assert {worker.steps_per_epoch for worker in workers} == {alone.steps_per_epoch} == {3}
    for step in range(6):
        expected = alone.step(step)
        assert sorted(taken(workers, step)) == sorted(numbers(expected.micro_batches))
        for worker in workers:
            mine = worker.step(step)
            assert len(mine.micro_batches) == num_micro_batches
            assert (mine.num_trained_tokens, mine.num_tokens) == (expected.num_trained_tokens, expected.num_tokens)


def test_trained_tokens_of_all_samples(readers: dict[int, SampleReader]) -> None:
    expected = sum(np.count_nonzero(sample(number).labels != IGNORED_LABEL) for number in range(1, 24))
    assert ranks(readers[23], (1, 1, 2))[0].num_trained_tokens == expected > 0


def test_the_plan_deals_out_runs_of_the_order() -> None:
    plan = plan_steps(np.array([4, 0, 3, 1, 2]), 4, (1, 2, 2))
    assert plan.tolist() == [[[[4, 0], [3, 1]]], [[[2, EMPTY], [EMPTY, EMPTY]]]]


def test_the_plan_leaves_empty_what_a_step_has_no_sequences_for() -> None:
    plan = plan_steps(np.array([4, 0, 3, 1, 2]), 3, (1, 2, 2))
    assert plan.tolist() == [[[[4, 0], [3, EMPTY]]], [[[1, 2], [EMPTY, EMPTY]]]]


def packed(*lengths: int) -> Sample:
    """A pack of examples with the tokens 1, 2, 3, ... all trained but the first of each."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    labels = ids.copy()
    labels[np.cumsum((0, *lengths[:-1]))] = IGNORED_LABEL
    return Sample(ids, labels, np.array(lengths, dtype=np.int32))


def test_collate() -> None:
    """Positions start anew at every example and at the padding."""
    batch = collate([packed(3, 1, 2), packed(4), EMPTY_SAMPLE])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 0, 0], [0] * 6]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]]
    assert batch.positions.tolist() == [0, 1, 4, 6, 7, 8]  # each stands before a trained token
    assert batch.targets.tolist() == [2, 3, 6, 2, 3, 4]
    assert (batch.num_positions, batch.num_token_pairs) == (18, 9 + 1 + 4 + 16 + 1)
    tensors = (batch.input_ids, batch.position_ids, batch.positions, batch.targets)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert batch.documents is None


def test_collate_by_documents() -> None:
    """One row without padding, and the examples' lengths."""
    batch = collate([packed(3, 1, 2), packed(4), EMPTY_SAMPLE], Layout(by_documents=True))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1, 2, 3, 0]]
    assert batch.positions.tolist() == [0, 1, 4, 6, 7, 8]
    assert batch.targets.tolist() == [2, 3, 6, 2, 3, 4]
    assert (batch.num_positions, batch.num_token_pairs) == (11, 9 + 1 + 4 + 16 + 1)
    assert batch.documents is not None
    assert batch.documents.lengths == (3, 1, 2, 4, 1)
    assert batch.documents.offsets.tolist() == [0, 3, 4, 6, 10, 11]


def test_padding_is_a_document_of_its_own() -> None:
    batch = collate([packed(3), packed(1, 2)], Layout(by_documents=True, pad_to=5))
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 0, 1, 2, 3, 0, 0]]
    assert batch.documents is not None
    assert batch.documents.lengths == (3, 2, 1, 2, 2)
    assert batch.targets.tolist() == [2, 3, 3]


@pytest.mark.parametrize(("pad_to", "width"), [(None, 4), (2, 4), (4, 4), (7, 7)])
def test_pad_to_is_a_least_width(pad_to: int | None, width: int) -> None:
    batch = collate([packed(4), packed(1, 2)], Layout(pad_to=pad_to))
    assert batch.input_ids.shape == batch.position_ids.shape == (2, width)
    assert batch.input_ids[:, :3].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert batch.targets.tolist() == [2, 3, 4, 3]


def test_pad_to_of_a_training(readers: dict[int, SampleReader]) -> None:
    batches = TrainingBatches(
        readers[5], micro_batch_size=2, sequences_per_step=4, rank=0, num_workers=1, layout=Layout(pad_to=16)
    )
    shapes = [batch.input_ids.shape for step in range(2) for batch in batches.step(step).micro_batches]
    assert shapes == [(2, 16)] * 4


def test_a_batch_moves_as_a_whole() -> None:
    moved = collate([packed(2, 3)], Layout(by_documents=True)).to(torch.device("meta"))
    assert moved.documents is not None
    tensors = (moved.input_ids, moved.position_ids, moved.positions, moved.targets, moved.documents.offsets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.num_token_pairs == 4 + 9


def test_the_largest_batch_holds_the_longest_samples(readers: dict[int, SampleReader]) -> None:
    reader = readers[5]
    batches = TrainingBatches(reader, micro_batch_size=2, sequences_per_step=2, rank=0, num_workers=1)
    assert batches.largest().input_ids.shape == (2, batches.longest_tokens)
    assert batches.longest_tokens == max(len(reader[index].input_ids) for index in range(len(reader)))

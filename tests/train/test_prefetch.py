"""Batches made ahead are those that would be made when asked for."""

import pytest
import torch

from llmforge.dataset.shards import SampleReader
from llmforge.train.batches import StepBatches, TrainingBatches
from llmforge.train.prefetch import Prefetcher
from tests.train.ranks import write_random_samples


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> TrainingBatches:
    folder = tmp_path_factory.mktemp("samples")
    write_random_samples(folder)
    reader = SampleReader([folder / "packed.arrow"])
    return TrainingBatches(
        reader, micro_batch_size=2, sequences_per_step=4, rank=0, num_workers=1, seed=3, shuffle=True
    )


def assert_same(one: StepBatches, other: StepBatches) -> None:
    assert (one.num_tokens, one.num_trained_tokens) == (other.num_tokens, other.num_trained_tokens)
    for first, second in zip(one.micro_batches, other.micro_batches, strict=True):
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("steps", [range(12), (4, 5, 6), (3, 3, 1, 2, 9)], ids=str)
def test_any_order_of_steps(batches: TrainingBatches, steps: range | tuple[int, ...]) -> None:
    """From the start, resumed in the middle of an epoch, and wherever one may look."""
    with Prefetcher(batches, pin_memory=False) as prefetcher:
        for step in steps:
            assert_same(prefetcher.step(step), batches.step(step))


def test_what_goes_wrong_ahead_is_raised_where_it_is_needed(batches: TrainingBatches) -> None:
    class Broken(TrainingBatches):
        def step(self, index: int) -> StepBatches:
            if index == 2:
                raise OSError("the disk is gone")
            return batches.step(index)

    with Prefetcher(object.__new__(Broken), pin_memory=False) as prefetcher:
        prefetcher.step(0)
        prefetcher.step(1)
        with pytest.raises(OSError, match="the disk is gone"):
            prefetcher.step(2)

"""Samples to tensors: which samples a step takes, who gets which, and how they are laid out.

In: a `SampleReader` and the sizes of a step. Out: `StepBatches`. The plan is a pure function of (seed, epoch): every
rank knows the whole global batch, and with it the number of trained tokens that divides the loss, without any
communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.shards import Sample, SampleReader, sample_order

EMPTY = -1
"""Fills up the last global batch of an epoch: a sample without labels, which adds nothing to loss or gradient."""
EMPTY_SAMPLE = Sample(
    np.zeros(1, dtype=np.int32), np.full(1, IGNORED_LABEL, dtype=np.int32), np.ones(1, dtype=np.int32)
)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank; all shapes (sequences, tokens)."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Start anew at every example and at the padding: this is what keeps the examples of a pack apart."""
    labels: torch.Tensor
    weights: torch.Tensor | None = None
    """Factors of the loss in float32; None where all trained positions weigh 1."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(self.input_ids.to(device), self.position_ids.to(device), self.labels.to(device), weights)


@dataclass(frozen=True)
class StepBatches:
    """What one rank computes in one step, and what all ranks together do."""

    micro_batches: list[Batch]
    num_trained_tokens: int
    """Of the global batch."""
    loss_weight: float
    """Weights of these tokens added up: the denominator of the loss, their number where all weigh 1."""
    num_tokens: int
    """Of the global batch, without padding."""


class TrainingBatches:
    """The steps of an epoch, as seen by one rank."""

    def __init__(
        self,
        reader: SampleReader,
        *,
        micro_batch_size: int,
        num_micro_batches: int,
        rank: int,
        num_workers: int,
        seed: int = 0,
        shuffle: bool = False,
        pad_to: int | None = None,
    ) -> None:
        self._reader = reader
        self._shape = (num_micro_batches, num_workers, micro_batch_size)
        self._rank = rank
        self._seed = seed
        self._shuffle = shuffle
        self._pad_to = pad_to
        self._epoch_plan: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the samples; the last one may be partly empty."""
        return -(-len(self._reader) // self.sequences_per_step)

    @property
    def sequences_per_step(self) -> int:
        """Of the global batch."""
        return int(np.prod(self._shape))

    @property
    def num_trained_tokens(self) -> int:
        """Trained tokens of all samples."""
        return int(self._reader.num_trained_tokens.sum())

    @property
    def loss_weight(self) -> float:
        """Weights of the trained tokens of all samples, added up."""
        return float(self._reader.loss_weights.sum())

    def step(self, index: int) -> StepBatches:
        """The batches of step `index`, counted from 0 over the whole run."""
        epoch, position = divmod(index, self.steps_per_epoch)
        return self._batches(self._plan(epoch)[position])

    def _plan(self, epoch: int) -> NDArray[np.int64]:
        """Sample indexes of all steps of an epoch, shape (steps, micro-batches, workers, sequences)."""
        if self._epoch_plan is None or self._epoch_plan[0] != epoch:
            order = sample_order(len(self._reader), self._seed, epoch, shuffle=self._shuffle)
            self._epoch_plan = (epoch, plan_steps(order, self._shape))
        return self._epoch_plan[1]

    def _batches(self, plan: NDArray[np.int64]) -> StepBatches:
        used = plan[plan != EMPTY]
        samples = [[self._sample(index) for index in sequences] for sequences in plan[:, self._rank]]
        return StepBatches(
            micro_batches=[collate(sequences, self._pad_to) for sequences in samples],
            num_trained_tokens=int(self._reader.num_trained_tokens[used].sum()),
            loss_weight=float(self._reader.loss_weights[used].sum()),
            num_tokens=int(self._reader.num_tokens[used].sum()),
        )

    def _sample(self, index: int) -> Sample:
        return EMPTY_SAMPLE if index == EMPTY else self._reader[int(index)]


def plan_steps(order: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Deal samples out to steps; shape (steps, micro-batches, workers, sequences).

    The samples of a step are a run of `order`, whatever the number of workers, so another split of the same global
    batch takes the same samples in the same steps.
    """
    global_batch = int(np.prod(shape))
    num_steps = -(-len(order) // global_batch)
    padded = np.full(num_steps * global_batch, EMPTY, dtype=np.int64)
    padded[: len(order)] = order
    return padded.reshape(num_steps, *shape)


def collate(samples: Sequence[Sample], pad_to: int | None = None) -> Batch:
    """Lay samples out as rows, padded to the longest or to `pad_to` tokens. Padding has no label and is seen
    by nobody.
    """
    width = max(pad_to or 0, *(len(sample.input_ids) for sample in samples))
    input_ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED_LABEL, dtype=torch.long)
    position_ids = torch.zeros(len(samples), width, dtype=torch.long)
    is_weighted = any(sample.weights is not None for sample in samples)
    weights = torch.ones(len(samples), width) if is_weighted else None
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        input_ids[row, :length] = torch.from_numpy(sample.input_ids.astype(np.int64))
        labels[row, :length] = torch.from_numpy(sample.labels.astype(np.int64))
        lengths = [*sample.example_lengths.tolist(), width - length]
        position_ids[row] = torch.cat([torch.arange(n) for n in lengths])
        if weights is not None and sample.weights is not None:
            weights[row, :length] = torch.from_numpy(sample.weights.copy())
    return Batch(input_ids, position_ids, labels, weights)

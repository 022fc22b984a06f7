"""Samples to tensors: which samples a step takes, who gets which, and how they are laid out.

In: a `SampleReader` and the sizes of a step. Out: `StepBatches`. The plan is a pure function of (seed, epoch): every
rank knows the whole global batch, and with it the number of trained tokens that divides the loss, without any
communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from llmforge.config.batch_size import micro_batches_per_worker
from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.shards import Sample, SampleReader, sample_order
from llmforge.models.document_attention import Documents
from llmforge.train.batch_answers import Answers, answers_of

EMPTY = -1
"""Fills up the last global batch of an epoch, and one that the workers cannot share equally: a sample without labels,
which adds nothing to loss or gradient."""
EMPTY_SAMPLE = Sample(
    np.zeros(1, dtype=np.int32), np.full(1, IGNORED_LABEL, dtype=np.int32), np.ones(1, dtype=np.int32)
)


@dataclass(frozen=True)
class Layout:
    """How samples become tensors."""

    by_documents: bool = False
    """All samples of a micro-batch in one row without padding, for attention by documents; else one row for each."""
    pad_to: int | None = None
    """Tokens of every sample, padding included; None: those of the longest, or none at all in one row."""
    of_answers: bool = False
    """The examples are answers that are compared, of pairs each chosen one before its rejected one."""
    rated: bool = False
    """Every two examples are a rated answer and a mismatched one, which goes into a batch beside."""
    alone: bool = False
    """Every example is laid out as a sample of its own."""


ROWS = Layout()


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank; token tensors have shape (rows, tokens), the others (trained tokens,)."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Start anew at every example and at the padding: this is what keeps the examples of a pack apart."""
    positions: torch.Tensor
    """Which tokens, counted over all rows, have a trained one behind them; never empty, so that every rank takes part
    in every exchange of gradients."""
    targets: torch.Tensor
    """The ids of these trained tokens."""
    weights: torch.Tensor | None = None
    """Factors of the loss in float32; None where all trained tokens weigh 1."""
    documents: Documents | None = None
    """Where the layout is by documents: the examples of the row, and its padding as one more of each sample."""

    answers: Answers | None = None
    """Where the examples hold answers that are compared."""

    mismatched: "Batch | None" = None
    """Of rated answers, those by which their reference point is found. Stays where it is when the batch is moved."""

    reference_point: torch.Tensor | None = None
    """Of rated answers, what they are compared with: a scalar on the device that computes."""

    num_token_pairs: int = 0
    """Squares of the lengths of the examples, added up: what attention works through, twice over."""

    @property
    def num_positions(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device, copied beside other work where its memory is pinned."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            move(self.input_ids),
            move(self.position_ids),
            move(self.positions),
            move(self.targets),
            None if self.weights is None else move(self.weights),
            None if self.documents is None else self.documents.to(device),
            None if self.answers is None else self.answers.by(move),
            self.mismatched,
            self.reference_point,
            self.num_token_pairs,
        )

    def pinned(self) -> "Batch":
        """The same batch in memory from which a GPU can copy by itself."""
        return Batch(
            self.input_ids.pin_memory(),
            self.position_ids.pin_memory(),
            self.positions.pin_memory(),
            self.targets.pin_memory(),
            None if self.weights is None else self.weights.pin_memory(),
            self.documents,
            None if self.answers is None else self.answers.by(torch.Tensor.pin_memory),
            None if self.mismatched is None else self.mismatched.pinned(),
            self.reference_point,
            self.num_token_pairs,
        )


@dataclass(frozen=True)
class StepBatches:
    """What one rank computes in one step, and what all ranks together do."""

    micro_batches: list[Batch]
    num_trained_tokens: int
    """Of the global batch."""
    loss_weight: float
    """The denominator of the loss: weights of these tokens added up, which is their number where all weigh 1; of pairs
    and rated answers their number."""
    num_tokens: int
    """Of the global batch, without padding."""


class TrainingBatches:
    """The steps of an epoch, as seen by one rank."""

    def __init__(
        self,
        reader: SampleReader,
        *,
        micro_batch_size: int,
        sequences_per_step: int,
        rank: int,
        num_workers: int,
        seed: int = 0,
        shuffle: bool = False,
        layout: Layout = ROWS,
    ) -> None:
        self._reader = reader
        self.sequences_per_step = sequences_per_step
        """Of the global batch, whoever computes it."""
        num_micro_batches = micro_batches_per_worker(sequences_per_step, micro_batch_size, num_workers)
        self._shape = (num_micro_batches, num_workers, micro_batch_size)
        self._rank = rank
        self._seed = seed
        self._shuffle = shuffle
        self._layout = layout
        self._epoch_plan: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the samples; the last one may be partly empty."""
        return -(-len(self._reader) // self.sequences_per_step)

    @property
    def num_trained_tokens(self) -> int:
        """Trained tokens of all samples."""
        return int(self._reader.num_trained_tokens.sum())

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sample."""
        return int(self._reader.num_tokens.max())

    @property
    def most_trained_tokens(self) -> int:
        """Most trained tokens of one sample."""
        return int(self._reader.num_trained_tokens.max())

    @property
    def loss_weight(self) -> float:
        """Weights of the trained tokens of all samples, added up."""
        return float(self._reader.loss_weights.sum())

    def step(self, index: int) -> StepBatches:
        """The batches of step `index`, counted from 0 over the whole run."""
        epoch, position = divmod(index, self.steps_per_epoch)
        return self._batches(self._plan(epoch)[position])

    def largest(self) -> Batch:
        """A micro-batch of the longest samples: none takes more memory."""
        longest = np.argsort(self._reader.num_tokens, kind="stable")[::-1][: self._shape[2]]
        return collate([self._reader[int(index)] for index in longest], self._layout)

    def _plan(self, epoch: int) -> NDArray[np.int64]:
        """Sample indexes of all steps of an epoch, shape (steps, micro-batches, workers, sequences)."""
        if self._epoch_plan is None or self._epoch_plan[0] != epoch:
            order = sample_order(len(self._reader), self._seed, epoch, shuffle=self._shuffle)
            self._epoch_plan = (epoch, plan_steps(order, self.sequences_per_step, self._shape))
        return self._epoch_plan[1]

    def _batches(self, plan: NDArray[np.int64]) -> StepBatches:
        used = plan[plan != EMPTY]
        samples = [[self._sample(index) for index in sequences] for sequences in plan[:, self._rank]]
        return StepBatches(
            micro_batches=[collate(sequences, self._layout) for sequences in samples],
            num_trained_tokens=int(self._reader.num_trained_tokens[used].sum()),
            loss_weight=float(self._reader.loss_weights[used].sum()),
            num_tokens=int(self._reader.num_tokens[used].sum()),
        )

    def _sample(self, index: int) -> Sample:
        return EMPTY_SAMPLE if index == EMPTY else self._reader[int(index)]


def plan_steps(order: NDArray[np.int64], sequences_per_step: int, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Deal samples out to steps; shape (steps, micro-batches, workers, sequences).

    The samples of a step are a run of `order`, whatever the number of workers, so another split of the same global
    batch takes the same samples in the same steps. What a split has room for beyond them stays empty.
    """
    num_steps = -(-len(order) // sequences_per_step)
    padded = np.full(num_steps * sequences_per_step, EMPTY, dtype=np.int64)
    padded[: len(order)] = order
    plan = np.full((num_steps, int(np.prod(shape))), EMPTY, dtype=np.int64)
    plan[:, :sequences_per_step] = padded.reshape(num_steps, sequences_per_step)
    return plan.reshape(num_steps, *shape)


def collate(samples: Sequence[Sample], layout: Layout = ROWS) -> Batch:
    """Lay samples out. Padding has no label and is seen by nobody."""
    if layout.rated:
        unrated = replace(layout, of_answers=True, rated=False)
        own, mismatched = (collate(_members(samples, place), unrated) for place in (0, 1))
        return replace(own, mismatched=mismatched)
    if layout.alone:
        samples = [example for sample in samples for example in _alone(sample)]
    lengths = np.array([len(sample.input_ids) for sample in samples])
    width = max(layout.pad_to or 0, int(lengths.max()))
    if layout.by_documents:
        widths = lengths if layout.pad_to is None else np.full_like(lengths, width)
        num_rows = 1
    else:
        widths, num_rows = np.full_like(lengths, width), len(samples)
    starts = np.cumsum(widths) - widths
    input_ids = np.zeros(int(widths.sum()), dtype=np.int64)
    trained: list[NDArray[np.int64]] = []
    for start, sample in zip(starts, samples, strict=True):
        input_ids[start : start + len(sample.input_ids)] = sample.input_ids
        trained.append(np.flatnonzero(sample.labels != IGNORED_LABEL) + start)
    places = np.concatenate(trained)
    documents = _document_lengths(samples, widths - lengths)
    weights = _weights(samples)
    if len(places) == 0:
        places, weights = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return Batch(
        input_ids=torch.from_numpy(input_ids).view(num_rows, -1),
        position_ids=torch.from_numpy(_count_up(documents)).view(num_rows, -1),
        positions=torch.from_numpy(places - 1),
        targets=torch.from_numpy(input_ids[places % len(input_ids)]),
        weights=None if weights is None else torch.from_numpy(weights),
        documents=Documents.of(documents.tolist()) if layout.by_documents else None,
        answers=answers_of([one for one in samples if one is not EMPTY_SAMPLE]) if layout.of_answers else None,
        num_token_pairs=sum(int(np.square(sample.example_lengths.astype(np.int64)).sum()) for sample in samples),
    )


def _members(samples: Sequence[Sample], place: Literal[0, 1]) -> list[Sample]:
    """The rated answers of samples, or the mismatched ones."""
    return [sample if sample is EMPTY_SAMPLE else sample.members(place) for sample in samples]


def _alone(sample: Sample) -> list[Sample]:
    return [sample] if sample is EMPTY_SAMPLE else sample.alone()


def _document_lengths(samples: Sequence[Sample], padding: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of all examples in their order, the padding of each sample behind its own."""
    lengths = [part for sample, rest in zip(samples, padding, strict=True) for part in (sample.example_lengths, [rest])]
    together = np.concatenate(lengths).astype(np.int64)
    return together[together > 0]


def _count_up(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 ... for each of the lengths."""
    counted: NDArray[np.int64] = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return counted


def _weights(samples: Sequence[Sample]) -> NDArray[np.float32] | None:
    """Of the trained tokens; None where all of them weigh 1."""
    if all(sample.weights is None for sample in samples):
        return None
    return np.concatenate(
        [
            np.ones(sample.num_trained_tokens, np.float32)
            if sample.weights is None
            else sample.weights[sample.labels != IGNORED_LABEL]
            for sample in samples
        ]
    )

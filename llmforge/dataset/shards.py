"""The prepared dataset on disk: written once by the data stage, read by every training worker.

A committed folder (`llmforge.storage.manifest`) of Arrow files, `train-00000.arrow` and `valid-00000.arrow`, and
`stats.json`. A row of the Arrow files is one *sample*, a sequence for the model: a pack of examples, or one example
where packing is off. The order in which samples are trained is a pure function of seed and epoch, so the position in
the data is one integer. It knows nothing of torch, and nothing of how samples came to be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmforge.dataset.assembly import gather
from llmforge.dataset.example import IGNORED_LABEL, ExampleBatch, is_weighted

Split = Literal["train", "valid"]

SAMPLE_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("example_lengths", pa.list_(pa.int32())),
        ("num_trained_tokens", pa.int64()),
        ("loss_weight", pa.float64()),
        ("are_desirable", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence: the examples of a pack, one behind the other."""

    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    labels: NDArray[np.int32]
    """Shape (tokens,); -100 where no loss is taken, so also at the first token of every example."""
    example_lengths: NDArray[np.int32]
    """Shape (examples,); their sum is the number of tokens."""
    weights: NDArray[np.float32] | None = None
    """Shape (tokens,), factors of the loss; None where all trained positions weigh 1."""
    reference: NDArray[np.float32] | None = None
    """Shape (examples,): of pairs and rated rows, the log-probabilities of the answers by the reference model, where
    these were computed beforehand."""
    are_desirable: NDArray[np.bool_] | None = None
    """Shape (examples,): of rated rows what the labels say, of the mismatched conversations those of their rows."""

    def alone(self) -> "list[Sample]":
        """Its examples as samples of their own."""
        ends = np.cumsum(self.example_lengths)
        return [
            Sample(
                self.input_ids[start:end],
                self.labels[start:end],
                self.example_lengths[index : index + 1],
                None if self.weights is None else self.weights[start:end],
                None if self.reference is None else self.reference[index : index + 1],
                None if self.are_desirable is None else self.are_desirable[index : index + 1],
            )
            for index, (start, end) in enumerate(zip(ends - self.example_lengths, ends, strict=True))
        ]

    def members(self, place: Literal[0, 1]) -> "Sample":
        """The first or the second example of every two as a sample of their own."""
        is_member = np.arange(len(self.example_lengths)) % 2 == place
        tokens = np.repeat(is_member, self.example_lengths)
        return Sample(
            self.input_ids[tokens],
            self.labels[tokens],
            self.example_lengths[is_member],
            None if self.weights is None else self.weights[tokens],
            None if self.reference is None else self.reference[is_member],
            None if self.are_desirable is None else self.are_desirable[is_member],
        )

    @property
    def num_trained_tokens(self) -> int:
        """How many positions carry loss."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))

    @property
    def loss_weight(self) -> float:
        """Sum of the weights of all positions that carry loss."""
        return self.num_trained_tokens if self.weights is None else float(self.weights.sum(dtype=np.float64))


@dataclass(frozen=True)
class SampleBatch:
    """Samples in flat buffers, one behind the other."""

    examples: ExampleBatch
    """All examples of all samples."""
    num_members: NDArray[np.int64]
    """Shape (samples,): how many examples each sample has."""
    is_paired: bool = False
    """Every two of them are a pair or a rated row, which counts 1 in the loss; else their trained tokens do, by their
    weights."""
    are_desirable: NDArray[np.bool_] | None = None
    """Shape (examples,): of rated rows what the labels say, as in `Sample`."""

    @property
    def learnt(self) -> "SampleBatch":
        """Without mismatched conversations, from which nothing is learnt."""
        if self.are_desirable is None:
            return self
        examples, is_own = self.examples, np.arange(len(self.examples)) % 2 == 0
        tokens = np.repeat(is_own, np.diff(examples.offsets))
        offsets = np.concatenate([[0], np.cumsum(np.diff(examples.offsets)[is_own])]).astype(np.int64)
        return SampleBatch(
            ExampleBatch(examples.input_ids[tokens], examples.weights[tokens], offsets), self.num_members // 2
        )

    @property
    def loss_weights(self) -> NDArray[np.float64]:
        """Shape (samples,): the share of each in the denominator of the loss."""
        samples = self.samples
        return self.num_members / 2 if self.is_paired else np.asarray(samples.sums(samples.weights))

    @property
    def samples(self) -> ExampleBatch:
        """Each sample as one long example."""
        return ExampleBatch(self.examples.input_ids, self.examples.weights, self.examples.offsets[self.member_ends])

    @property
    def member_ends(self) -> NDArray[np.int64]:
        """Shape (samples + 1,): which example each sample begins with."""
        return np.concatenate([[0], np.cumsum(self.num_members)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.num_members)


def shard_name(split: Split, number: int = 0) -> str:
    """File name of a shard."""
    return f"{split}-{number:05d}.arrow"


def is_shard_of(split: Split, name: str) -> bool:
    """Whether a file of a prepared dataset is a shard of this split."""
    return name.startswith(f"{split}-") and name.endswith(".arrow")


def write_shard(path: Path, batches: Iterable[SampleBatch]) -> int:
    """Write samples to one Arrow IPC file, batch by batch; returns how many."""
    count = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SAMPLE_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(_record_batch(batch))
            count += len(batch)
    return count


class SampleReader:
    """The samples of one split, memory-mapped: opening costs no memory, any number of processes share the pages."""

    def __init__(self, paths: Iterable[Path], reference_paths: Sequence[Path] = ()) -> None:
        """`paths`: all shards of the split, in their order. `reference_paths`: where there is a reference model, those
        of its log-probabilities.
        """
        table = _mapped(paths)
        self._reference = _mapped(reference_paths)["reference"] if reference_paths else None
        self._input_ids = table["input_ids"]
        self._labels = table["labels"]
        self._weights = table["weights"]
        self._example_lengths = table["example_lengths"]
        self._are_desirable = table["are_desirable"]
        self.num_trained_tokens: NDArray[np.int64] = table["num_trained_tokens"].to_numpy()
        """Shape (samples,): how many positions of each sample carry loss, of rated rows those of their own answers."""
        self.loss_weights: NDArray[np.float64] = table["loss_weight"].to_numpy()
        """Shape (samples,): the sample's share of the loss's denominator, see `SampleBatch`."""
        self.num_tokens: NDArray[np.int64] = _num_tokens(table)
        """Shape (samples,): how many tokens each sample has, mismatched conversations left out."""

    def __len__(self) -> int:
        return len(self.num_trained_tokens)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            _values(self._input_ids, index),
            _values(self._labels, index),
            _values(self._example_lengths, index),
            self._weights[index].values.to_numpy() if self._weights[index].is_valid else None,
            None if self._reference is None else self._reference[index].values.to_numpy(),
            _flags(self._are_desirable[index]),
        )


def sample_order(num_samples: int, seed: int, epoch: int, *, shuffle: bool = True) -> NDArray[np.int64]:
    """The order of samples in an epoch (counted from 0), shape (num_samples,): a pure function of its arguments."""
    if not shuffle:
        return np.arange(num_samples)
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def _mapped(paths: Iterable[Path]) -> pa.Table:
    return pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all() for path in paths)


def _num_tokens(table: pa.Table) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
    if table["are_desirable"].null_count < len(table):
        own = [lengths.values.to_numpy()[::2].sum() for lengths in table["example_lengths"]]
        counts = np.array(own, dtype=np.int64)
    return counts


def _flags(found: pa.ListScalar) -> NDArray[np.bool_] | None:
    return found.values.to_numpy(zero_copy_only=False) if found.is_valid else None


def _values(column: pa.ChunkedArray, index: int) -> NDArray[np.int32]:
    values: NDArray[np.int32] = column[index].values.to_numpy()
    return values


def _record_batch(batch: SampleBatch) -> pa.RecordBatch:
    samples, learnt = batch.samples, batch.learnt.samples
    members = pa.array(batch.member_ends, pa.int32())
    weighs_otherwise = samples.sums(is_weighted(samples.weights)) > 0
    offsets = pa.array(samples.offsets, pa.int32())
    lengths = np.diff(batch.examples.offsets).astype(np.int32)
    return pa.record_batch(
        [
            pa.ListArray.from_arrays(offsets, samples.input_ids),
            pa.ListArray.from_arrays(offsets, samples.labels),
            _weights_where(weighs_otherwise, samples),
            pa.ListArray.from_arrays(members, lengths),
            pa.array(learnt.sums(learnt.weights > 0), pa.int64()),
            pa.array(batch.loss_weights, pa.float64()),
            pa.nulls(len(batch), SAMPLE_SCHEMA.field("are_desirable").type)
            if batch.are_desirable is None
            else pa.ListArray.from_arrays(members, pa.array(batch.are_desirable)),
        ],
        schema=SAMPLE_SCHEMA,
    )


def _weights_where(is_kept: NDArray[np.bool_], samples: ExampleBatch) -> pa.Array:
    """The weights of some samples, nulls for the others."""
    if not is_kept.any():
        return pa.nulls(len(samples), SAMPLE_SCHEMA.field("weights").type)
    lengths = np.where(is_kept, np.diff(samples.offsets), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    kept = gather(samples.weights, samples.offsets[:-1][is_kept], lengths[is_kept])
    return pa.ListArray.from_arrays(pa.array(offsets), kept, mask=pa.array(~is_kept))

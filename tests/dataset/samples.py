"""Samples made by hand, for tests of what reads and trains them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.example import IGNORED_LABEL, Example, ExampleBatch
from llmforge.dataset.shards import Sample, SampleBatch, write_shard


def weights_of(one: Example | Sample) -> NDArray[np.float32]:
    """Factors of the loss at every position."""
    return (one.labels != IGNORED_LABEL).astype(np.float32) if one.weights is None else one.weights


def join_examples(examples: Sequence[Example]) -> Sample:
    """One sample of several examples."""
    return Sample(
        np.concatenate([example.input_ids for example in examples]),
        np.concatenate([example.labels for example in examples]),
        np.array([len(example.input_ids) for example in examples], dtype=np.int32),
        np.concatenate([weights_of(example) for example in examples])
        if any(example.weights is not None for example in examples)
        else None,
    )


def write_samples(
    path: Path, samples: Iterable[Sample], samples_per_batch: int = 256, *, is_paired: bool = False
) -> int:
    """A shard of samples; returns how many."""
    kept = list(samples)
    batches = (kept[start : start + samples_per_batch] for start in range(0, len(kept), samples_per_batch))
    return write_shard(path, (_batch(batch, is_paired) for batch in batches))


def _batch(samples: Sequence[Sample], is_paired: bool) -> SampleBatch:
    lengths = np.concatenate([sample.example_lengths for sample in samples])
    examples = ExampleBatch(
        np.concatenate([sample.input_ids for sample in samples]),
        np.concatenate([weights_of(sample) for sample in samples]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    num_members = np.array([len(sample.example_lengths) for sample in samples], dtype=np.int64)
    labels = [sample.are_desirable for sample in samples if sample.are_desirable is not None]
    return SampleBatch(examples, num_members, is_paired, np.concatenate(labels) if labels else None)

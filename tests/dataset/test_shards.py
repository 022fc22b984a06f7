"""The prepared dataset on disk: what is written is read, and the order of samples is a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.shards import Sample, SampleReader, sample_order, shard_name
from tests.dataset.samples import join_examples, weights_of, write_samples


def make_example(ids: list[int], weights: Sequence[float]) -> Example:
    input_ids = np.array(ids, dtype=np.int32)
    labels = np.where(np.array(weights) > 0, input_ids, np.int32(IGNORED_LABEL)).astype(np.int32)
    is_plain = set(weights) <= {0, 1}
    return Example(input_ids, labels, None if is_plain else np.array(weights, dtype=np.float32))


TOKENS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 1, 0.5, 3])), min_size=1, max_size=12)
EXAMPLES = TOKENS.map(lambda tokens: make_example([token for token, _ in tokens], [weight for _, weight in tokens]))


@given(packs=st.lists(st.lists(EXAMPLES, min_size=1, max_size=4), max_size=8))
@settings(max_examples=25)
def test_written_and_read(packs: list[list[Example]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / shard_name("train")
    assert write_samples(path, (join_examples(examples) for examples in packs)) == len(packs)
    reader = SampleReader([path])
    assert len(reader) == len(packs)
    for index, examples in enumerate(packs):
        ids = [token for example in examples for token in example.input_ids.tolist()]
        labels = [label for example in examples for label in example.labels.tolist()]
        sample = reader[index]
        assert sample.input_ids.tolist() == ids
        assert sample.labels.tolist() == labels
        assert sample.example_lengths.tolist() == [len(example.input_ids) for example in examples]
        weights = [weights_of(example) for example in examples]
        assert (sample.weights is None) == all(example.weights is None for example in examples)
        if sample.weights is not None:
            assert sample.weights.tolist() == np.concatenate(weights).tolist()
        assert reader.loss_weights[index] == np.concatenate(weights).sum()
        assert reader.num_tokens[index] == len(ids)
        assert reader.num_trained_tokens[index] == sum(example.num_trained_tokens for example in examples)
    assert (reader.num_tokens.dtype, reader.num_trained_tokens.dtype) == (np.dtype(np.int64), np.dtype(np.int64))


def test_more_samples_than_fit_into_one_batch(tmp_path: Path) -> None:
    per_batch = 10
    count = 2 * per_batch + 1
    samples = (
        join_examples([make_example([number] * (1 + number % 3), [True] * (1 + number % 3))]) for number in range(count)
    )
    path = tmp_path / "train.arrow"
    assert write_samples(path, samples, per_batch) == count
    reader = SampleReader([path])
    assert [reader[number].input_ids.tolist() for number in range(count)] == [
        [number] * (1 + number % 3) for number in range(count)
    ]
    with pytest.raises(IndexError):
        reader[count]


def test_a_shard_is_plain_arrow(tmp_path: Path) -> None:
    path = tmp_path / "valid.arrow"
    ids, labels, lengths = (np.array(values, dtype=np.int32) for values in ([5, 6, 7], [-100, 6, -100], [2, 1]))
    write_samples(path, [Sample(ids, labels, lengths)])
    assert pa.ipc.open_file(str(path)).read_all().to_pylist() == [
        {
            "input_ids": [5, 6, 7],
            "labels": [-100, 6, -100],
            "weights": None,
            "example_lengths": [2, 1],
            "num_trained_tokens": 1,
            "loss_weight": 1.0,
            "are_desirable": None,
        }
    ]


def test_names_of_shards() -> None:
    assert [shard_name("train"), shard_name("valid", 12)] == ["train-00000.arrow", "valid-00012.arrow"]


@given(num_samples=st.integers(0, 300), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    order = sample_order(num_samples, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_samples))
    assert sample_order(num_samples, seed, epoch).tolist() == order.tolist()
    assert sample_order(num_samples, seed, epoch, shuffle=False).tolist() == list(range(num_samples))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert sample_order(10, 0, 0).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    orders = {tuple(sample_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25

"""Numbers of a reference model beside a prepared dataset: stored once, found again, read with the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmforge.dataset.example import Example
from llmforge.dataset.prepared import PreparedDataset, commit_prepared
from llmforge.dataset.reference import commit_reference, has_reference, reference_name
from llmforge.storage.local import LocalStorage
from tests.dataset.samples import join_examples, write_samples
from tests.dataset.test_stats import STATS

MODEL = {"weights": ["model.safetensors sha256:0"], "precision": "fp32"}
NUMBERS = [np.array([-1.5, -2.0], np.float32), np.array([-3.0, -4.0, -5.0, -6.25], np.float32)]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "runs")


@pytest.fixture
def prepared(storage: LocalStorage, tmp_path: Path) -> PreparedDataset:
    """Two samples of one pair and of two."""
    folder = tmp_path / "made"
    folder.mkdir()
    answer = Example(np.array([1, 2, 3], np.int32), np.array([-100, -100, 3], np.int32))
    samples = [join_examples([answer] * count) for count in (2, 4)]
    write_samples(folder / "train-00000.arrow", samples, is_paired=True)
    return commit_prepared(storage, "0123456789abcdef", folder, STATS)


def test_the_numbers_come_back_with_their_samples(
    storage: LocalStorage, prepared: PreparedDataset, tmp_path: Path
) -> None:
    name = reference_name(prepared, MODEL)
    assert not has_reference(storage, name)
    commit_reference(storage, name, {"train": NUMBERS})
    assert has_reference(storage, name)
    reader = replace(prepared, reference=name).open("train", storage, tmp_path / "cache")
    for index, numbers in enumerate(NUMBERS):
        found = reader[index].reference
        assert found is not None and found.tolist() == numbers.tolist()
        alone = [one.reference for one in reader[index].alone()]
        assert [value.tolist() for value in alone if value is not None] == [[number] for number in numbers.tolist()]
    assert reader.loss_weights.tolist() == [1.0, 2.0]
    assert prepared.open("train", storage, tmp_path / "cache")[0].reference is None


def test_whoever_comes_second_finds_the_same_there(storage: LocalStorage, prepared: PreparedDataset) -> None:
    name = reference_name(prepared, MODEL)
    commit_reference(storage, name, {"train": NUMBERS})
    commit_reference(storage, name, {"train": NUMBERS})
    assert has_reference(storage, name)


def test_damaged_numbers_are_made_anew(storage: LocalStorage, prepared: PreparedDataset, tmp_path: Path) -> None:
    name = reference_name(prepared, MODEL)
    commit_reference(storage, name, {"train": NUMBERS})
    (tmp_path / "runs" / "data" / name / "train-reference.arrow").unlink()
    assert not has_reference(storage, name)
    commit_reference(storage, name, {"train": NUMBERS})
    assert has_reference(storage, name)


@pytest.mark.parametrize(
    "other", [{"precision": "bf16"}, {"weights": ["model.safetensors sha256:1"]}, {"quantization": {"bits": 4}}]
)
def test_another_model_has_another_name(prepared: PreparedDataset, other: dict[str, object]) -> None:
    assert reference_name(prepared, MODEL) != reference_name(prepared, {**MODEL, **other})
    assert reference_name(prepared, MODEL) != reference_name(replace(prepared, name="fedcba9876543210"), MODEL)

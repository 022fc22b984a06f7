"""KTO by its definition, at points where it is known."""

from __future__ import annotations

import math

import pytest
import torch

from llmforge.config.training import PreferenceTuningConfig
from llmforge.train.rated_losses import (
    RatedScores,
    log_ratio_total,
    measure_rated,
    rated_losses,
    rated_means,
    reference_point,
)

CONFIG = PreferenceTuningConfig(loss="kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.75)


def scores(reference_point: float = 1.0) -> RatedScores:
    """A good answer that has become likelier by 2, another by 0.5, and a bad one that has become so by 3."""
    answers, reference = torch.tensor([-6.0, -4.0, -9.0]), torch.tensor([-8.0, -4.5, -12.0])
    return RatedScores(answers, reference, torch.tensor([True, True, False]), torch.tensor(reference_point))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_definition() -> None:
    expected = [1.5 * (1 - sigmoid(0.5 * 1)), 1.5 * (1 - sigmoid(-0.5 * 0.5)), 0.75 * (1 - sigmoid(-0.5 * 2))]
    assert rated_losses(scores(), CONFIG).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_reference_point_is_the_mean_over_all_batches_and_never_negative() -> None:
    """A row without a mismatched answer does not count."""
    first = log_ratio_total(torch.tensor([-3.0, 0.0]), torch.tensor([-5.0, 0.0]), torch.tensor([4.0, 0.0]))
    second = log_ratio_total(torch.tensor([-3.0]), torch.tensor([-4.0]), torch.tensor([1.0]))
    assert reference_point(first + second).item() == 1.5
    assert reference_point(-first).item() == 0
    assert reference_point(torch.zeros(2, dtype=torch.float64)).item() == 0
    assert reference_point(first).dtype == torch.float32


def test_measures_are_means_over_their_own_kind() -> None:
    sums = measure_rated(scores(), CONFIG).tolist()
    assert rated_means(sums, 3) == pytest.approx(
        {
            "reward_desirable": 0.5 * (2 + 0.5) / 2,
            "reward_undesirable": 0.5 * 3,
            "reward_margin": 0.5 * (1.25 - 3),
            "reward_accuracy": 1 / 3,  # the first alone lies on its side of the reference point
            "log_probability_desirable": -5.0,
            "log_probability_undesirable": -9.0,
            "kl": 1.0,
        }
    )


def test_a_batch_without_one_kind_has_no_measures_of_it() -> None:
    one = scores()
    good = RatedScores(one.answers[:2], one.reference[:2], one.are_desirable[:2], one.reference_point)
    assert rated_means(measure_rated(good, CONFIG).tolist(), 2) == pytest.approx(
        {"reward_desirable": 0.625, "reward_accuracy": 0.5, "log_probability_desirable": -5.0, "kl": 1.0}
    )


def test_nothing_is_right_before_the_first_step() -> None:
    """Model and reference are equal, as with pairs."""
    one = scores(0.0)
    same = RatedScores(one.reference, one.reference, one.are_desirable, one.reference_point)
    assert rated_means(measure_rated(same, CONFIG).tolist(), 3)["reward_accuracy"] == 0
    assert rated_losses(same, CONFIG).tolist() == [0.75, 0.75, 0.375]

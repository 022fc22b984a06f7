"""Losses of pairs by their definitions, at points where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from llmforge.config.training import PreferenceTuningConfig
from llmforge.train.preference_losses import PairScores, measure_names, measure_pairs, pair_losses, pair_rewards


def scores(*, with_reference: bool = True) -> PairScores:
    """One pair: log-probabilities of -6 over 3 tokens and -10 over 4, by the reference model of -7 and -9."""
    numbers = (torch.tensor([number]) for number in (-6.0, -10.0, 3.0, 4.0))
    reference = (torch.tensor([-7.0]), torch.tensor([-9.0])) if with_reference else ()
    return PairScores(*numbers, *reference)


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def log_odds(log_probability: float) -> float:
    return log_probability - math.log(1 - math.exp(log_probability))


CASES = [
    (PreferenceTuningConfig(beta=0.5), -log_sigmoid(0.5 * (1 + 1))),
    (
        PreferenceTuningConfig(beta=0.5, label_smoothing=0.1),
        -0.9 * log_sigmoid(0.5 * 2) - 0.1 * log_sigmoid(-0.5 * 2),
    ),
    (PreferenceTuningConfig(loss="ipo", beta=0.25), (1 / 3 + 1 / 4 - 1 / (2 * 0.25)) ** 2),
    (PreferenceTuningConfig(loss="simpo", beta=2.0, gamma=1.5), -log_sigmoid(2 * (-2 + 2.5) - 1.5)),
    (PreferenceTuningConfig(loss="orpo", beta=0.1), 2 - 0.1 * log_sigmoid(log_odds(-2) - log_odds(-2.5))),
]


@pytest.mark.parametrize(("config", "expected"), CASES)
def test_the_definition(config: PreferenceTuningConfig, expected: float) -> None:
    found = pair_losses(scores(with_reference=config.needs_reference), config)
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


def test_orpo_is_finite_and_has_a_gradient_far_out() -> None:
    """Answers that are certain, and all but impossible."""
    chosen = torch.tensor([0.0, -3000.0], requires_grad=True)
    pair = PairScores(chosen, torch.tensor([-3000.0, 0.0]), torch.ones(2), torch.ones(2))
    pair_losses(pair, PreferenceTuningConfig(loss="orpo", beta=0.1)).sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None and bool(torch.isfinite(chosen.grad).all())


def test_measures_with_a_reference_model() -> None:
    config = PreferenceTuningConfig(beta=0.5)
    assert dict(zip(measure_names(config), measure_pairs(scores(), config).tolist(), strict=True)) == {
        "reward_chosen": 0.5,
        "reward_rejected": -0.5,
        "reward_margin": 1.0,
        "reward_accuracy": 1.0,
        "log_probability_chosen": -6.0,
        "log_probability_rejected": -10.0,
        "kl": 0.0,
    }


def test_rewards_without_a_reference_model_are_means_over_tokens() -> None:
    config = PreferenceTuningConfig(loss="simpo", beta=2.0, gamma=1.0)
    chosen, rejected = pair_rewards(scores(with_reference=False), config)
    assert (chosen.tolist(), rejected.tolist()) == ([-4.0], [-5.0])
    assert "kl" not in measure_names(config)

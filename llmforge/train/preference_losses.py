"""Losses of pairs: what a model is told of a chosen and a rejected answer to the same prompt.

In: log-probabilities of answers, summed over their tokens, and a job's `preference_tuning_config`. Out: a loss for
each pair, and the rewards that stand behind it. Arithmetic on small vectors: it knows neither model nor batch.

- DPO: Rafailov et al. 2023, "Direct preference optimization", equation 7; with label smoothing, which takes this
  share of the labels for wrong, Mitchell 2023, "A note on DPO with noisy preferences" (conservative DPO).
- IPO: Azar et al. 2023, "A general theoretical paradigm to understand learning from human preferences", equation 17,
  on the mean over the tokens of an answer, as its authors computed it.
- SimPO: Meng et al. 2024, "Simple preference optimization with a reference-free reward", equation 6.
- ORPO: Hong et al. 2024, "Monolithic preference optimization without reference model", equations 6 and 7.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from llmforge.config.training import REWARD_ACCURACY, PreferenceTuningConfig

MEASURES = (
    *("reward_chosen", "reward_rejected", "reward_margin", REWARD_ACCURACY),
    *("log_probability_chosen", "log_probability_rejected"),
)
"""What is measured of every pair, in the order of `measure_pairs`; as the mean over pairs it is a metric."""
REFERENCE_MEASURES = (*MEASURES, "kl")
"""The same where there is a reference model."""


_CERTAIN = -1e-7
"""The logarithm of a probability whose odds are finite."""


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of the answers of some pairs, each summed over its answer; all have the shape (pairs,)."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    num_chosen_tokens: torch.Tensor
    num_rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor | None = None
    """Of the reference model; None for losses without one."""
    reference_rejected: torch.Tensor | None = None

    @property
    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """How much likelier than to the reference model the answers have become."""
        assert self.reference_chosen is not None and self.reference_rejected is not None
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities over the tokens of each answer."""
        return self.chosen / self.num_chosen_tokens, self.rejected / self.num_rejected_tokens


def pair_losses(scores: PairScores, config: PreferenceTuningConfig) -> torch.Tensor:
    """The loss of each pair, shape (pairs,), for a config whose defaults are filled in."""
    assert config.beta is not None  # `resolve_job` has filled it in
    match config.loss:
        case "dpo":
            return _dpo(scores, config.beta, config.label_smoothing)
        case "ipo":
            return _ipo(scores, config.beta)
        case "simpo":
            assert config.gamma is not None
            return _simpo(scores, config.beta, config.gamma)
        case "orpo":
            return _orpo(scores, config.beta)
        case "kto":
            raise AssertionError("refused by `config/unsupported.py`")


def _dpo(scores: PairScores, beta: float, label_smoothing: float) -> torch.Tensor:
    chosen, rejected = scores.log_ratios
    margin = beta * (chosen - rejected)
    right, wrong = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def _ipo(scores: PairScores, beta: float) -> torch.Tensor:
    chosen, rejected = scores.log_ratios
    difference = chosen / scores.num_chosen_tokens - rejected / scores.num_rejected_tokens
    return (difference - 1 / (2 * beta)) ** 2


def _simpo(scores: PairScores, beta: float, gamma: float) -> torch.Tensor:
    chosen, rejected = scores.means
    return -functional.logsigmoid(beta * (chosen - rejected) - gamma)


def _orpo(scores: PairScores, beta: float) -> torch.Tensor:
    """The cross entropy of the chosen answer, and `beta` times the loss of the ratio of the odds."""
    chosen, rejected = scores.means
    log_odds = (chosen - _log_of_rest(chosen)) - (rejected - _log_of_rest(rejected))
    return -chosen - beta * functional.logsigmoid(log_odds)


def _log_of_rest(log_probability: torch.Tensor) -> torch.Tensor:
    """The logarithm of 1 - p, finite also where p is 1 in float32."""
    return torch.log(-torch.expm1(log_probability.clamp(max=_CERTAIN)))


def pair_rewards(scores: PairScores, config: PreferenceTuningConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loss takes for the reward of the chosen and of the rejected answers, each of shape (pairs,)."""
    assert config.beta is not None
    chosen, rejected = scores.log_ratios if config.needs_reference else scores.means
    return config.beta * chosen, config.beta * rejected


def measure_pairs(scores: PairScores, config: PreferenceTuningConfig) -> torch.Tensor:
    """The measures of all pairs, added up, in double precision; shape (measures,)."""
    chosen, rejected = pair_rewards(scores, config)
    measures = [chosen, rejected, chosen - rejected, chosen > rejected, scores.chosen, scores.rejected]
    if config.needs_reference:
        chosen, rejected = scores.log_ratios
        measures.append(-(chosen + rejected) / 2)
    return torch.stack([measure.double().sum() for measure in measures])


def measure_names(config: PreferenceTuningConfig) -> tuple[str, ...]:
    """What `measure_pairs` gives for this config."""
    return REFERENCE_MEASURES if config.needs_reference else MEASURES

"""The loss of rated answers: how far a model makes single answers likelier where they are desirable, and unlikelier
where they are not.

KTO: Ethayarajh et al. 2024, "KTO: Model alignment as prospect theoretic optimization", equation 7. In:
log-probabilities of answers, summed over their tokens, and a job's `preference_tuning_config`. Out: a loss for each
answer, and what is measured of them. Arithmetic on small vectors: it knows neither model nor batch.

The reference point `z0` is how far the model has moved from the reference model: the mean of the log-ratios of
mismatched answers, and not less than 0. It is one number for all answers of a global batch and has no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmforge.config.training import REWARD_ACCURACY, PreferenceTuningConfig

RATED_SUMS = (
    *("desirable", "reward_desirable", "reward_undesirable", REWARD_ACCURACY),
    *("log_probability_desirable", "log_probability_undesirable", "kl"),
)
"""What is added up over answers, in the order of `measure_rated`: the number of desirable ones, then their measures."""


@dataclass(frozen=True)
class RatedScores:
    """Log-probabilities of some answers, each summed over its answer; all but the last have the shape (answers,)."""

    answers: torch.Tensor
    reference: torch.Tensor
    """Of the reference model."""
    are_desirable: torch.Tensor
    reference_point: torch.Tensor
    """`z0`, a scalar."""

    @property
    def advantages(self) -> torch.Tensor:
        """By how much the log-ratio of each answer lies above the reference point; shape (answers,)."""
        return self.answers - self.reference - self.reference_point


def rated_losses(scores: RatedScores, config: PreferenceTuningConfig) -> torch.Tensor:
    """The loss of each answer, shape (answers,), for a config whose defaults are filled in."""
    assert config.beta is not None  # `resolve_job` has filled it in
    advantages = config.beta * scores.advantages
    desirable = config.desirable_weight * (1 - torch.sigmoid(advantages))
    undesirable = config.undesirable_weight * (1 - torch.sigmoid(-advantages))
    return torch.where(scores.are_desirable, desirable, undesirable)


def reference_point(total: torch.Tensor) -> torch.Tensor:
    """`z0` of what `log_ratio_total` has given, added up over a global batch; a scalar in float32."""
    ratios, count = total.unbind()
    return (ratios / count.clamp(min=1)).clamp(min=0).float()


def log_ratio_total(answers: torch.Tensor, reference: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
    """Log-ratios of mismatched answers added up, and how many there are, in double precision; shape (2,).

    `num_tokens`: of each, 0 where a row has none.
    """
    ratios = (answers - reference).double()
    return torch.stack([ratios.sum(), (num_tokens > 0).sum().double()])


def measure_rated(scores: RatedScores, config: PreferenceTuningConfig) -> torch.Tensor:
    """What `RATED_SUMS` says of all answers, in double precision; shape (sums,)."""
    assert config.beta is not None
    is_good, advantages = scores.are_desirable, scores.advantages
    is_bad = ~is_good
    rewards = config.beta * (scores.answers - scores.reference)
    is_right = torch.where(is_good, advantages > 0, advantages < 0)
    sums = [
        is_good,
        *(rewards * is_good, rewards * is_bad),
        is_right,
        *(scores.answers * is_good, scores.answers * is_bad),
        scores.reference_point.expand(len(is_good)),
    ]
    return torch.stack([values.double().sum() for values in sums])


def rated_means(sums: Sequence[float], num_answers: float) -> dict[str, float]:
    """The measures of a batch from its sums: of each kind of answers by their own number, and left out where there
    are none of them.
    """
    total = dict(zip(RATED_SUMS, sums, strict=True))
    num_desirable = total["desirable"]
    counts = {"desirable": num_desirable, "undesirable": num_answers - num_desirable}
    means = {REWARD_ACCURACY: total[REWARD_ACCURACY] / num_answers, "kl": total["kl"] / num_answers}
    for kind, count in counts.items():
        if count:
            means |= {f"{name}_{kind}": total[f"{name}_{kind}"] / count for name in ("reward", "log_probability")}
    if all(counts.values()):
        means["reward_margin"] = means["reward_desirable"] - means["reward_undesirable"]
    return means

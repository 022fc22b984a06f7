"""Rated rows: single answers that are desirable or not, as KTO learns from them.

In: the encoded conversations of such rows and what their labels say, and later how many there are of both kinds. Out:
`EncodedRows` that know where the answers begin, and a warning where one kind outweighs the other. Which answers of
other rows they are compared with is told in `dataset/mismatched.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmforge.config.job import JobConfig
from llmforge.dataset.row_encoder import EncodedRows
from llmforge.dataset.stats import DatasetStats

logger = logging.getLogger(__name__)

WITHOUT_LOSS = "the answer has no token to learn from"
HIGHEST_BALANCE = 4 / 3
"""Of the weights of desirable answers to those of undesirable ones, each times their number; at least it is 1.
Ethayarajh et al. 2024, equation 8."""


def rate(encoded: EncodedRows, are_desirable: Sequence[bool]) -> EncodedRows:
    """With the label of every row, and the length of its prompt, which ends where its trained tokens begin."""
    examples = encoded.examples
    trained = np.flatnonzero(examples.weights > 0)
    is_trained = examples.sums(examples.weights > 0) > 0
    begins = np.zeros(len(examples), np.int64)
    starts = examples.offsets[:-1][is_trained]
    begins[is_trained] = trained[np.searchsorted(trained, starts)] - starts
    nothing = [None if each else WITHOUT_LOSS for each in is_trained]
    return replace(
        encoded,
        problems=[problem or missing for problem, missing in zip(encoded.problems, nothing, strict=True)],
        first_lengths=begins,
        are_desirable=np.array(are_desirable, dtype=bool),
    )


def warn_of_imbalance(job: JobConfig, stats: DatasetStats) -> None:
    """Say what to set where a job's weights leave one kind of answers outweighing the other, to two digits, as what is
    advised is rounded too.
    """
    config, rated = job.preference_tuning_config, stats.train.rated
    if config is None or rated is None:
        return
    if not rated.desirable or not rated.undesirable:
        kind = "desirable" if rated.desirable else "undesirable"
        logger.warning("all answers are %s: the model learns only to make answers %s", kind, _where_to(kind))
        return
    balance = config.desirable_weight * rated.desirable / (config.undesirable_weight * rated.undesirable)
    if 1 <= round(balance, 2) <= round(HIGHEST_BALANCE, 2):
        return
    lowest = config.undesirable_weight * rated.undesirable / rated.desirable
    highest = config.desirable_weight * rated.desirable / rated.undesirable
    logger.warning(
        "%d desirable answers weigh %.3g times as much as %d undesirable ones, where 1 to 4/3 is advised "
        "(docs/preference.md): set preference_tuning_config.desirable_weight to %.3g to %.3g, or undesirable_weight to "
        "%.3g to %.3g",
        rated.desirable,
        balance,
        rated.undesirable,
        lowest,
        lowest * HIGHEST_BALANCE,
        highest / HIGHEST_BALANCE,
        highest,
    )


def _where_to(kind: str) -> str:
    return "likelier" if kind == "desirable" else "unlikelier"

"""What an evaluation of a classifier has found: written beside its weights, and shown in the report.

Plain values; `label_scores.py` computes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmforge.config.base import StrictModel
from llmforge.config.classifier import Classifier

LABEL_EVALUATION_FILE = "classifier_evaluation.json"
"""In every checkpoint that was evaluated, or that comes after an evaluation."""


class LabelScore(StrictModel):
    """One label against the rest; a number is None where it is not defined."""

    label: str
    support: int
    """Rows that have it."""
    precision: float | None
    """Share of the rows decided for it that have it."""
    recall: float | None
    """Share of the rows that have it which are decided for it."""
    f1: float | None
    prauc: float | None
    """Average precision: the area under the curve of precision over recall."""


class ReliabilityBin(StrictModel):
    """Rows whose likeliest label has a probability in the same fifteenth of the way from 0 to 1."""

    count: int
    confidence: float
    """Mean probability of the likeliest label."""
    accuracy: float
    """Share of the rows that have it."""


class PrecisionRecallCurve(StrictModel):
    """Precision over recall for one label, as its threshold falls."""

    label: str
    recall: tuple[float, ...]
    precision: tuple[float, ...]


class LabelEvaluation(StrictModel):
    """A classifier on validation data."""

    classifier: Classifier
    accuracy: float
    f1: float | None
    """Of two labels that of the positive one, of more the mean over those that rows have; `prauc` alike."""
    prauc: float | None
    scores: tuple[LabelScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: a line for each label that they have, a column for each that is decided for."""
    calibration_error: float
    """Expected calibration error: by how much the likeliest labels come true more or less often than they say."""
    calibration_error_before: float
    """The same with a temperature of 1."""
    reliability: tuple[ReliabilityBin, ...]
    reliability_before: tuple[ReliabilityBin, ...]
    curves: tuple[PrecisionRecallCurve, ...]

    def measures(self, eval_metrics: Sequence[str]) -> dict[str, float]:
        """For the metric records: the metrics that a job asks for, and those of every label; what is not defined has
        no key."""
        found: dict[str, float | None] = {name: getattr(self, name) for name in eval_metrics}
        found |= {
            "calibration_error": self.calibration_error,
            "calibration_error_before": self.calibration_error_before,
            "temperature": self.classifier.temperature,
        }
        if self.classifier.positive_label is not None:
            found["threshold"] = self.classifier.threshold
        for key, score in zip(label_keys(self.classifier.labels), self.scores, strict=True):
            found |= {f"precision/{key}": score.precision, f"recall/{key}": score.recall}
        return {name: value for name, value in found.items() if value is not None}


def label_keys(labels: Sequence[str]) -> list[str]:
    """Names of labels within keys of metrics, which services take letters, digits and little else in."""
    keys = [re.sub(r"\W+", "_", label).strip("_") for label in labels]
    is_clear = all(keys) and len(set(keys)) == len(keys)
    return keys if is_clear else [f"label_{number}" for number in range(1, len(labels) + 1)]

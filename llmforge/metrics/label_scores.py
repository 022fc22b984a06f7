"""How well a classifier does on labelled rows, and the temperature and threshold that suit it.

In: logits of labels and the label that each row has. Out: a `Classifier` with its temperature and threshold, and a
`LabelEvaluation`. The result does not depend on the order of the rows. The measures are scikit-learn's, which takes
seconds to import: nothing but the training of a classifier imports this module.

- Temperature: Guo et al. 2017, "On calibration of modern neural networks", section 4.2: the one with the lowest
  negative log-likelihood of the labels. Where every row is right there is none, and it stays 1.
- Expected calibration error: section 2 there, 15 bins of the same width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
)

from llmforge.config.classifier import Classifier
from llmforge.metrics.labels import LabelEvaluation, LabelScore, PrecisionRecallCurve, ReliabilityBin

NUM_BINS = 15
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
MAX_CURVE_POINTS = 200
Numbers = NDArray[np.float64]
Indexes = NDArray[np.int64]


def fit_classifier(
    classifier: Classifier, logits: Numbers, targets: Indexes, *, calibrate: bool, tunes_threshold: bool
) -> Classifier:
    """The same labels with the temperature and the threshold that suit these rows.

    `logits` has shape (rows, labels); `targets` are indexes of labels, shape (rows,).
    """
    if calibrate:
        classifier = classifier.model_copy(update={"temperature": best_temperature(logits, targets)})
    if tunes_threshold and classifier.positive_label is not None:
        positive = classifier.labels.index(classifier.positive_label)
        is_positive = targets == positive
        if is_positive.any():
            probabilities = softmax(logits / classifier.temperature, axis=1)[:, positive]
            classifier = classifier.model_copy(update={"threshold": best_threshold(is_positive, probabilities)})
    return classifier


def best_temperature(logits: Numbers, targets: Indexes) -> float:
    """The temperature that makes these labels likeliest; 1 where every row is right, for then ever lower ones do."""
    if (logits.argmax(axis=1) == targets).all():
        return 1.0
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, targets].mean())

    bounds = (np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x))


def best_threshold(is_positive: NDArray[np.bool_], probabilities: Numbers) -> float:
    """The threshold with the highest F1, the nearest to 0.5 of equals: halfway between the rows that it parts."""
    precision, recall, thresholds = precision_recall_curve(is_positive, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = thresholds[f1[:-1] >= f1[:-1].max() - 1e-12]
    below = np.array([probabilities[probabilities < least].max(initial=0.0) for least in best])
    halfway = (best + below) / 2
    return float(np.clip(halfway[np.abs(halfway - 0.5).argmin()], 1e-6, 1 - 1e-6))


def evaluate_labels(classifier: Classifier, logits: Numbers, targets: Indexes) -> LabelEvaluation:
    """What this classifier comes to on these rows; arguments as in `fit_classifier`."""
    probabilities = softmax(logits / classifier.temperature, axis=1)
    before = softmax(logits, axis=1)
    decided = _decided(classifier, probabilities)
    indexes = range(len(classifier.labels))
    scores = _scores(classifier.labels, probabilities, targets, decided)
    if classifier.positive_label is None:
        shown = list(indexes)
        counted = [score for score in scores if score.support]
    else:
        shown = [classifier.labels.index(classifier.positive_label)]
        counted = [scores[shown[0]]] if scores[shown[0]].support else []
    curves = [_curve(classifier.labels[i], targets == i, probabilities[:, i]) for i in shown if scores[i].support]
    return LabelEvaluation(
        classifier=classifier,
        accuracy=float(accuracy_score(targets, decided)),
        f1=_mean([score.f1 for score in counted]),
        prauc=_mean([score.prauc for score in counted]),
        scores=tuple(scores),
        confusion=tuple(tuple(row) for row in confusion_matrix(targets, decided, labels=list(indexes)).tolist()),
        calibration_error=calibration_error(probabilities, targets),
        calibration_error_before=calibration_error(before, targets),
        reliability=tuple(_reliability(probabilities, targets)),
        reliability_before=tuple(_reliability(before, targets)),
        curves=tuple(curves),
    )


def calibration_error(probabilities: Numbers, targets: Indexes) -> float:
    """Expected calibration error of the likeliest labels."""
    bins = _reliability(probabilities, targets)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / len(targets)


def _decided(classifier: Classifier, probabilities: Numbers) -> Indexes:
    """As `Classifier.decide`, for all rows at once."""
    if classifier.positive_label is None:
        return np.asarray(probabilities.argmax(axis=1))
    positive = classifier.labels.index(classifier.positive_label)
    return np.where(probabilities[:, positive] >= classifier.threshold, positive, 1 - positive)


def _scores(labels: Sequence[str], probabilities: Numbers, targets: Indexes, decided: Indexes) -> list[LabelScore]:
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, decided, labels=list(range(len(labels))), zero_division=np.nan
    )
    return [
        LabelScore(
            label=label,
            support=int(support[i]),
            precision=_defined(precision[i]),
            recall=_defined(recall[i]),
            f1=_defined(f1[i]) if support[i] else None,
            prauc=float(average_precision_score(targets == i, probabilities[:, i])) if support[i] else None,
        )
        for i, label in enumerate(labels)
    ]


def _reliability(probabilities: Numbers, targets: Indexes) -> list[ReliabilityBin]:
    """The bins that hold rows."""
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    members = (place == number for number in range(NUM_BINS))
    return [
        ReliabilityBin(
            count=int(found.sum()), confidence=float(confidence[found].mean()), accuracy=float(is_right[found].mean())
        )
        for found in members
        if found.any()
    ]


def _curve(label: str, is_it: NDArray[np.bool_], probabilities: Numbers) -> PrecisionRecallCurve:
    precision, recall, _ = precision_recall_curve(is_it, probabilities)
    kept = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), MAX_CURVE_POINTS)).round().astype(np.int64))
    return PrecisionRecallCurve(
        label=label, recall=tuple(recall[kept].tolist()), precision=tuple(precision[kept].tolist())
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

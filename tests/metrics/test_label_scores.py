"""Measures of a classifier, against numbers worked out by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from llmforge.config.classifier import Classifier
from llmforge.metrics.label_scores import (
    best_temperature,
    best_threshold,
    calibration_error,
    evaluate_labels,
    fit_classifier,
)
from llmforge.metrics.labels import label_keys

TWO = Classifier(labels=("safe", "unsafe"), token_ids=(7, 9), positive_label="unsafe")
THREE = Classifier(labels=("a", "b", "c"), token_ids=(1, 2, 3))
POSITIVE = [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]
"""Probabilities of the positive label."""
TARGETS = np.array([1, 1, 0, 1, 1, 0, 0, 0])


def logits_of(probabilities: list[list[float]]) -> NDArray[np.float64]:
    logits: NDArray[np.float64] = np.log(np.array(probabilities))
    return logits


LOGITS = logits_of([[1 - p, p] for p in POSITIVE])


def test_the_measures_of_two_labels() -> None:
    """At 0.5 four are decided for, three of them rightly; one of four is missed."""
    found = evaluate_labels(TWO, LOGITS, TARGETS)
    assert found.confusion == ((3, 1), (1, 3))
    assert found.accuracy == 0.75
    assert found.f1 == pytest.approx(0.75)
    # precision at each row found, from the likeliest on: 1/1, 2/2, 3/4, 4/5
    assert found.prauc == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert [(score.label, score.support) for score in found.scores] == [("safe", 4), ("unsafe", 4)]
    assert found.curves[0].label == "unsafe" and found.curves[0].recall[-1] == 0
    assert found.measures(["f1"]) == {
        "f1": found.f1, "calibration_error": found.calibration_error,
        "calibration_error_before": found.calibration_error, "temperature": 1.0, "threshold": 0.5,
        "precision/safe": 0.75, "recall/safe": 0.75, "precision/unsafe": 0.75, "recall/unsafe": 0.75,
    }  # fmt: skip


def test_the_threshold_moves_what_is_decided() -> None:
    found = evaluate_labels(TWO.model_copy(update={"threshold": 0.4}), LOGITS, TARGETS)
    assert found.confusion == ((3, 1), (0, 4))
    assert found.f1 == pytest.approx(8 / 9)


def test_the_best_threshold_has_the_highest_f1() -> None:
    probabilities = np.array(POSITIVE)
    threshold = best_threshold(TARGETS == 1, probabilities)
    assert threshold == pytest.approx(0.35)

    def f1(at: float) -> float:
        decided = probabilities >= at
        return float(2 * (decided & (TARGETS == 1)).sum() / (decided.sum() + (TARGETS == 1).sum()))

    assert f1(threshold) == pytest.approx(max(f1(at) for at in np.linspace(0.01, 0.99, 99)))


def test_the_temperature_makes_the_labels_likeliest() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(400, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([generator.choice(3, p=row) for row in probabilities])
    overconfident = logits * 2.5

    def loss(temperature: float) -> float:
        scaled = overconfident / temperature
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(400), targets]).mean())

    found = best_temperature(overconfident, targets)
    assert loss(found) <= min(loss(at) for at in np.geomspace(0.06, 19, 3000)) + 1e-9
    assert found == pytest.approx(2.5, rel=0.2)
    fitted = fit_classifier(THREE, overconfident, targets, calibrate=True, tunes_threshold=False)
    evaluation = evaluate_labels(fitted, overconfident, targets)
    assert evaluation.calibration_error < 0.5 * evaluation.calibration_error_before


def test_where_all_rows_are_right_there_is_no_temperature() -> None:
    assert best_temperature(np.array([[2.0, -2.0], [-1.0, 3.0]]), np.array([0, 1])) == 1.0


def test_the_calibration_error_by_hand() -> None:
    """Two bins: two rows at 0.9 of which one comes true, two at 0.6 of which both do."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(probabilities, np.array([0, 1, 0, 1])) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_several_labels_count_alike_and_a_missing_one_not_at_all() -> None:
    logits = logits_of([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    found = evaluate_labels(THREE, logits, np.array([0, 0, 1, 1]))
    assert found.confusion == ((2, 0, 0), (1, 1, 0), (0, 0, 0))
    missing = found.scores[2]
    assert (missing.support, missing.f1, missing.prauc, missing.recall, missing.precision) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert found.f1 == pytest.approx((0.8 + 2 / 3) / 2)
    # a: rows 0, 1, 3 at 0.6, 0.5, 0.5 (a tie: 2 of 3); b: 0.7 right, 0.4 wrong, then two of 0.3, one of them right
    assert found.prauc == pytest.approx(((1 / 2 * 1 + 1 / 2 * 2 / 3) + (1 / 2 * 1 + 1 / 2 * 2 / 4)) / 2)
    assert "threshold" not in found.measures(["prauc"])
    assert not any(key.rpartition("/")[2] == "c" for key in found.measures(["prauc"]))


def test_measures_that_are_not_defined_have_no_key() -> None:
    found = evaluate_labels(TWO, LOGITS[:3], np.array([0, 0, 0]))
    assert (found.f1, found.prauc) == (None, None)
    measures = found.measures(["accuracy", "f1", "prauc"])
    assert "f1" not in measures and "prauc" not in measures and measures["accuracy"] == 0
    assert all(math.isfinite(value) for value in measures.values())


def test_what_keys_call_labels() -> None:
    assert label_keys(["<|safe|>", "very bad"]) == ["safe", "very_bad"]
    assert label_keys(["+", "-"]) == ["label_1", "label_2"]

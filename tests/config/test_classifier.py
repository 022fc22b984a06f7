"""What a job that trains a classifier may say, what it gets where it leaves something open, and how labels are read."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest
from pydantic import ValidationError

from llmforge.config.classifier import Classifier
from llmforge.config.job import JobConfig
from llmforge.config.resolve import JobFacts, resolve_job
from tests.config.conftest import Problems

KEYS = {"model_id": "meta-llama/Meta-Llama-3-8B-Instruct", "train_path": "rows.jsonl", "accelerator": "cpu"}
REFUSED = {
    "{label_tokens: [a, b, a]}": "classifier_config.label_tokens: found 'a' 2 times; name each label once",
    "{label_tokens: [a, ' b']}": (
        "classifier_config.label_tokens: found ' b', allowed are texts without white space around them; write it "
        "without"
    ),
    "{label_tokens: [a, b], positive_label: c}": (
        "classifier_config.positive_label: found 'c', allowed: a, b; name one of label_tokens"
    ),
    "{label_tokens: [a, b, c], positive_label: c}": (
        "classifier_config.positive_label: means nothing with 3 labels, of which the likeliest is taken; remove it"
    ),
    "{label_tokens: [a, b, c], threshold: 0.3}": (
        "classifier_config.threshold: means nothing with 3 labels, of which the likeliest is taken; remove it"
    ),
    "{label_tokens: [a, b], threshold: auto}": (
        "classifier_config.threshold: found auto, which is measured on validation data; add valid_path or "
        "dataset.valid_fraction, or give a number"
    ),
    "{label_tokens: [a, b], eval_metrics: [f1], best_by: prauc}": (
        "classifier_config.best_by: found prauc, allowed: loss, f1; add it to eval_metrics, or choose one of them"
    ),
    "{label_tokens: [a, b]}\ndataset: {over_length: truncate}": (
        "dataset.over_length: found truncate, allowed with classifier_config: drop, error (a cut row has lost its "
        "label)"
    ),
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_contradicts_itself_is_refused(given: str, problems: Problems) -> None:
    found = problems(f"classifier_config: {given}")
    assert [problem.partition(": ")[2] for problem in found] == [REFUSED[given]]


def resolved(**keys: object) -> JobConfig:
    job = JobConfig.model_validate_json(JobConfig.model_validate({**KEYS, **keys}).model_dump_json())
    job = resolve_job(job, JobFacts(has_gpu=False, started_at=datetime(2026, 1, 1)))
    assert JobConfig.model_validate_json(job.model_dump_json()) == job  # as it travels to workers
    return job


def test_defaults(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        job = resolved(classifier_config={"label_tokens": ["safe", "unsafe"]})
    config, generation = job.classifier_config, job.generation_config
    assert job.task == "classification" and job.labels == ("safe", "unsafe")
    assert config is not None and (config.positive_label, config.threshold) == ("unsafe", 0.5)
    assert config.eval_metrics == ("accuracy", "f1", "prauc")
    assert any("no validation data to measure temperature" in message for message in caplog.messages)
    several = resolved(classifier_config={"label_tokens": ["a", "b", "c"]}, valid_path="valid.jsonl")
    assert several.classifier_config is not None and several.classifier_config.positive_label is None
    assert generation is not None


def test_a_classifier_answers_with_one_token() -> None:
    labels = {"label_tokens": ["a", "b"]}
    for given, expected in (({}, 1), ({"temperature": 0.5}, 1), ({"max_tokens": 7}, 7)):
        keys = {"generation_config": given} if given else {}
        raw = JobConfig.model_validate({**KEYS, "classifier_config": labels, **keys})
        job = resolve_job(raw, JobFacts(has_gpu=False, started_at=datetime(2026, 1, 1)))
        assert job.generation_config is not None and job.generation_config.max_tokens == expected


def test_probabilities_and_decisions() -> None:
    two = Classifier(labels=("no", "yes"), token_ids=(4, 8), positive_label="yes", threshold=0.8, temperature=2.0)
    found = two.classify([0.0, 2.0])
    assert found.probabilities == pytest.approx({"no": 1 / (1 + 2.718281828), "yes": 1 - 1 / (1 + 2.718281828)})
    assert found.label == "no" and two.classify([0.0, 2.0], threshold=0.7).label == "yes"
    three = Classifier(labels=("a", "b", "c"), token_ids=(1, 2, 3))
    assert three.classify([-1000.0, 5.0, 1000.0]).label == "c"


@pytest.mark.parametrize("changes", [{"token_ids": (1,)}, {"positive_label": None}, {"labels": ("a", "b", "c")}])
def test_a_classifier_that_does_not_fit_together_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Classifier.model_validate({"labels": ("a", "b"), "token_ids": (1, 2), "positive_label": "b", **changes})

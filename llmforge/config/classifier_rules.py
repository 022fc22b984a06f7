"""Rules of `classifier_config`: what its own keys say of each other, and what it asks of the rest of the job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llmforge.config.finding import Finding
from llmforge.config.keys import JobKeys
from llmforge.config.training import ClassifierConfig

_KEY = "classifier_config"


def find_label_problems(job: JobKeys) -> Iterator[Finding]:
    """What cannot be among the labels, and keys that need two of them."""
    config = job.classifier_config
    if config is None:
        return
    labels, path = config.label_tokens, (_KEY, "label_tokens")
    for label, count in Counter(labels).items():
        if not label or label != label.strip():
            yield Finding(path, f"found {label!r}, allowed are texts without white space around them; write it without")
        if count > 1:
            yield Finding(path, f"found {label!r} {count} times; name each label once")
    yield from _find_two_label_problems(config)
    if config.best_by not in ("loss", *config.eval_metrics):
        listed = ", ".join(("loss", *config.eval_metrics))
        found = f"found {config.best_by}, allowed: {listed}; add it to eval_metrics, or choose one of them"
        yield Finding((_KEY, "best_by"), found)


def _find_two_label_problems(config: ClassifierConfig) -> Iterator[Finding]:
    positive, count = config.positive_label, len(config.label_tokens)
    if positive is not None and positive not in config.label_tokens:
        listed = ", ".join(config.label_tokens)
        yield Finding((_KEY, "positive_label"), f"found {positive!r}, allowed: {listed}; name one of label_tokens")
    if count > 2:
        why = f"means nothing with {count} labels, of which the likeliest is taken; remove it"
        if positive is not None:
            yield Finding((_KEY, "positive_label"), why)
        if config.threshold != ClassifierConfig.model_fields["threshold"].default:
            yield Finding((_KEY, "threshold"), why)


def find_classification_problems(job: JobKeys) -> Iterator[Finding]:
    """What the task asks of the data."""
    config = job.classifier_config
    if config is None:
        return
    if job.dataset.over_length == "truncate":
        yield Finding(
            ("dataset", "over_length"),
            "found truncate, allowed with classifier_config: drop, error (a cut row has lost its label)",
        )
    has_validation_data = job.valid_path is not None or job.dataset.valid_fraction is not None
    if config.threshold == "auto" and not has_validation_data:
        yield Finding(
            (_KEY, "threshold"),
            "found auto, which is measured on validation data; add valid_path or dataset.valid_fraction, or give a "
            "number",
        )

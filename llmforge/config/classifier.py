"""How a trained classifier is read: which tokens are its labels, and what their probabilities come to.

In: the logits of the label tokens behind a prompt. Out: a probability for each label, and the label that they decide
for. The training measures temperature and threshold on the validation data and keeps them beside the weights, in
`classifier.json`; whoever answers with the model reads them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from llmforge.config.base import StrictModel

CLASSIFIER_FILE = "classifier.json"
"""Beside the weights, in checkpoints and exported folders."""


@dataclass(frozen=True)
class Classification:
    """What a classifier says of one prompt."""

    label: str
    """The one decided for."""
    probabilities: Mapping[str, float]
    """Of every label, in the order of the job; they add up to 1."""


class Classifier(StrictModel):
    """Labels of a trained model, and how to decide between them."""

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Their texts, as the job gives them."""
    token_ids: tuple[int, ...]
    """The token of each that the model chooses behind a prompt."""
    positive_label: str | None = None
    """Of two labels the one that `threshold` is about; None where there are more."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of two labels, decide for the positive one from this probability on."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What logits are divided by, so that probabilities come true as often as they say (Guo et al. 2017, "On
    calibration of modern neural networks")."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.token_ids) != len(self.labels):
            raise ValueError(f"found {len(self.token_ids)} token ids for {len(self.labels)} labels")
        if (self.positive_label is None) != (len(self.labels) > 2) or self.positive_label not in (*self.labels, None):
            raise ValueError(f"positive_label: found {self.positive_label!r}; one of two labels has to be the positive")
        return self

    def probabilities(self, logits: Sequence[float]) -> tuple[float, ...]:
        """Of the labels alone, from their logits, in their order."""
        scaled = [logit / self.temperature for logit in logits]
        highest = max(scaled)
        weights = [math.exp(value - highest) for value in scaled]
        return tuple(weight / sum(weights) for weight in weights)

    def decide(self, probabilities: Sequence[float], threshold: float | None = None) -> str:
        """The label; `threshold` instead of the classifier's own. Of more than two labels the likeliest."""
        if self.positive_label is None:
            return self.labels[max(range(len(self.labels)), key=probabilities.__getitem__)]
        positive = self.labels.index(self.positive_label)
        is_positive = probabilities[positive] >= (self.threshold if threshold is None else threshold)
        return self.labels[positive if is_positive else 1 - positive]

    def classify(self, logits: Sequence[float], threshold: float | None = None) -> Classification:
        """What the logits of the label tokens behind a prompt say of it."""
        probabilities = self.probabilities(logits)
        by_label = dict(zip(self.labels, probabilities, strict=True))
        return Classification(self.decide(probabilities, threshold), by_label)

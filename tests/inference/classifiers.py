"""A classifier for tests without training: two or three words of a pretrained model as its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from tests.inference.runs import commit, copied, make_job, reference

TOKENS = {"there": "\u2581there", "he": "\u2581he", "big": "\u2581big"}
"""Labels, and the vocabulary's names of the tokens that they are behind a prompt of the tests' format."""


def make_classifier(model: Path, *labels: str, **changes: Any) -> Classifier:
    """Of two labels the last is the positive one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    ids = tuple(tokenizer.convert_tokens_to_ids([TOKENS[label] for label in labels]))
    assert tokenizer.unk_token_id not in ids
    positive = labels[1] if len(labels) == 2 else None
    return Classifier(labels=labels, token_ids=ids, positive_label=positive, **changes)


def classifier_run(model: Path, folder: Path, classifier: Classifier) -> Path:
    """A run whose one checkpoint holds the model and what makes a classifier of it."""
    weights = copied(model, folder / "weights")
    (weights / CLASSIFIER_FILE).write_text(classifier.model_dump_json())
    job = make_job(model, classifier_config={"label_tokens": classifier.labels})
    commit(folder / "run", "step-00000010-a", weights, job)
    return folder / "run"


def probabilities_of(model: Path, classifier: Classifier, prompt: str) -> Mapping[str, float]:
    """What `transformers` and torch alone say of the text of a prompt."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.no_grad():
        logits = reference(str(model))(input_ids=ids).logits[0, -1]
    chosen = (logits[list(classifier.token_ids)] / classifier.temperature).softmax(dim=0)
    return dict(zip(classifier.labels, chosen.tolist(), strict=True))

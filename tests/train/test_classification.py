"""The loss of labelled rows: that of a plain model at the last position, whatever shares a row with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llmforge.config.classifier import Classifier
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.shards import Sample
from llmforge.metrics.label_scores import evaluate_labels
from llmforge.models.attention import use_attention
from llmforge.train.batches import EMPTY_SAMPLE, Batch, Layout, collate
from llmforge.train.classification import ClassificationLoss
from llmforge.train.classifier_files import ClassifierFiles
from llmforge.train.state import Evaluation
from tests.dataset.samples import join_examples
from tests.train.answers import fixed_model

LABELS = (17, 30, 5)
"""Ids of the labels."""
PROMPTS = ([1, 5, 9, 13], [1, 40, 5], [1, 7, 8, 9, 10, 11, 12], [1, 60], [1, 22, 23, 24])
CHOSEN = (0, 1, 2, 0, 1)
WEIGHTS = (1.0, 0.5, 1.0, 2.0, 1.0)
LAYOUTS = {
    "one row": Layout(by_documents=True),
    "a row for each sample": Layout(),
    "padded": Layout(pad_to=30),
}


def example(index: int) -> Example:
    prompt, label = PROMPTS[index], LABELS[CHOSEN[index]]
    ids = np.array([*prompt, label], np.int32)
    labels = np.array([IGNORED_LABEL] * len(prompt) + [label], np.int32)
    weights = (labels != IGNORED_LABEL).astype(np.float32) * WEIGHTS[index]
    return Example(ids, labels, None if WEIGHTS[index] == 1 else weights)


def samples(*splits: int) -> list[Sample]:
    """All rows in order, so many in each sample."""
    ends = np.cumsum(splits).tolist()
    return [join_examples([example(i) for i in range(end - size, end)]) for size, end in zip(splits, ends, strict=True)]


def plain() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, the logits of the labels and the gradients, by the model's own logits of each row alone."""
    model = fixed_model(0.0)
    last = torch.stack([model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    targets = torch.tensor([LABELS[index] for index in CHOSEN])
    losses = -torch.log_softmax(last, dim=1)[torch.arange(len(PROMPTS)), targets]
    loss = (losses * torch.tensor(WEIGHTS)).sum()
    loss.backward()  # type: ignore[no-untyped-call] # torch is untyped here
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), last.detach()[:, list(LABELS)], gradients


def loss_module(layout: Layout) -> ClassificationLoss:
    model = fixed_model(0.0)
    use_attention(model, "sdpa_per_document" if layout.by_documents else "sdpa", device=torch.device("cpu"))
    return ClassificationLoss(model, LABELS)


@pytest.mark.parametrize("own_logits", [False, True], ids=["trained positions", "the model's own logits"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_the_loss_is_that_of_a_plain_model_at_the_last_position(layout: Layout, own_logits: bool) -> None:
    expected, label_logits, gradients = plain()
    found_labels = sum(
        weight
        for logits, label, weight in zip(label_logits, CHOSEN, WEIGHTS, strict=True)
        if int(logits.argmax()) == label
    )
    loss = loss_module(layout)
    loss.uses_own_logits = own_logits
    total, accuracy = 0.0, 0.0
    with loss.collecting() as collected:
        batches: list[Batch] = [collate([sample, EMPTY_SAMPLE], layout) for sample in samples(2, 3)]
        for batch in [*batches, collate([EMPTY_SAMPLE], layout)]:
            value, measures = loss(batch)
            value.backward()
            total, accuracy = total + value.item(), accuracy + measures.item()
    assert total == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy == pytest.approx(found_labels)
    logits = torch.cat([one.logits for one in collected])
    assert torch.allclose(logits, label_logits, atol=1e-5)
    assert torch.cat([one.targets for one in collected]).tolist() == [LABELS[index] for index in CHOSEN]
    for name, parameter in loss.model.named_parameters():
        assert parameter.grad is not None
        scale = gradients[name].abs().max().item()
        assert (parameter.grad - gradients[name]).abs().max().item() < 2e-5 * scale, name


def test_nothing_is_collected_unless_asked_for() -> None:
    loss = loss_module(LAYOUTS["one row"])
    batch = collate(samples(5), LAYOUTS["one row"])
    with loss.collecting() as collected, torch.no_grad():
        loss(batch)
    loss(batch)
    assert len(collected) == 1


def test_what_a_checkpoint_has_said_is_kept_until_the_next_evaluation(tmp_path: Path) -> None:
    files = ClassifierFiles(tmp_path)
    start = Classifier(labels=("a", "b"), token_ids=(1, 2), positive_label="b")
    files.begin(start)
    path = tmp_path / "classifier.json"
    assert Classifier.model_validate_json(path.read_text()) == start
    measured = start.model_copy(update={"temperature": 1.5, "threshold": 0.4})
    logits, targets = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]), np.array([1, 0, 0])
    files.write(evaluate_labels(measured, logits, targets))
    files.begin(start)  # after a failure, with the files of the checkpoint
    assert Classifier.model_validate_json(path.read_text()) == measured
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files.paths}


def test_an_evaluation_whose_measure_is_not_defined_is_the_worst() -> None:
    assert Evaluation(step=1, loss=0.5, score=math.nan).rank == math.inf
    assert Evaluation(step=1, loss=math.nan, score=0.9).rank == math.inf
    assert Evaluation(step=1, loss=0.5, score=0.9).rank == -0.9

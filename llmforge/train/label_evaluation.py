"""Evaluation of a classifier: the loss as in every task, and on top of it what the labels of all rows come to.

In: an engine whose loss is a `ClassificationLoss`, the validation batches, and the files that a checkpoint takes over.
Out: an `EvaluationResult`, the same on every rank. Rank 0 leaves temperature and threshold in `classifier.json` for the
next checkpoint, and all that was found beside it.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llmforge.config.classifier import Classifier
from llmforge.config.training import ClassifierConfig
from llmforge.metrics.label_scores import evaluate_labels, fit_classifier
from llmforge.train.batches import TrainingBatches
from llmforge.train.classification import ClassificationLoss, gather_label_logits
from llmforge.train.classifier_files import ClassifierFiles
from llmforge.train.engine import TrainingEngine
from llmforge.train.evaluate import EvaluationResult, evaluate


def evaluate_classifier(
    engine: TrainingEngine,
    batches: TrainingBatches,
    start: Classifier,
    config: ClassifierConfig,
    files: ClassifierFiles,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """The loss and the measures of the model as it stands; `start` is the classifier before anything is measured."""
    loss = engine.loss
    assert isinstance(loss, ClassificationLoss)
    with loss.collecting() as collected:
        result = evaluate(engine, batches, advance)
    found = gather_label_logits(collected)
    if not torch.isfinite(found.logits).all():  # the training has diverged, which the loss tells
        return EvaluationResult(result.loss, result.num_trained_tokens, dict.fromkeys(config.eval_metrics, math.nan))
    logits = found.logits.double().numpy()
    targets = _indexes(found.targets, start.token_ids)
    classifier = fit_classifier(
        start, logits, targets, calibrate=config.calibrate, tunes_threshold=config.threshold == "auto"
    )
    evaluation = evaluate_labels(classifier, logits, targets)
    if engine.rank == 0:
        files.write(evaluation)
    return EvaluationResult(result.loss, result.num_trained_tokens, evaluation.measures(config.eval_metrics))


def _indexes(targets: torch.Tensor, token_ids: Sequence[int]) -> NDArray[np.int64]:
    """Which label each token is."""
    return (targets[:, None] == torch.tensor(token_ids)).int().argmax(dim=1).numpy().astype(np.int64)

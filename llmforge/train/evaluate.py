"""Evaluation on the validation split: the same loss as in training, weighted by tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmforge.train.batches import Batch, TrainingBatches
from llmforge.train.engine import TrainingEngine


@dataclass(frozen=True)
class EvaluationResult:
    """One pass over the validation data; the same on every rank."""

    loss: float
    """Mean over all trained tokens, in nats."""
    num_trained_tokens: int


def evaluate(
    engine: TrainingEngine,
    batches: TrainingBatches,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """The loss of the model as it stands on all validation batches; `advance` is called at each of them."""

    def counted() -> Iterator[Batch]:
        for index in range(batches.steps_per_epoch):
            advance()
            yield from batches.step(index).micro_batches

    total = engine.evaluate(counted())
    return EvaluationResult(total / batches.loss_weight, batches.num_trained_tokens)

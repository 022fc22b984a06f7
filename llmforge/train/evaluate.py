"""Evaluation on the validation split: the same loss as in training, weighted by tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llmforge.train.batches import Batch, TrainingBatches
from llmforge.train.engine import TrainingEngine


@dataclass(frozen=True)
class EvaluationResult:
    """One pass over the validation data; the same on every rank."""

    loss: float
    """Mean over all trained tokens, in nats."""
    num_trained_tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the task measures beside its loss, as means in the same way."""


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

    total, measured = engine.measure(counted())
    weight = batches.loss_weight
    measures = {name: value / weight for name, value in measured.items()}
    return EvaluationResult(total / weight, batches.num_trained_tokens, measures)

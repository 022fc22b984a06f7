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
    """The loss of the model as it stands on all validation batches; `advance` is called at each of them, twice where
    the loss has a reference point, which is that of the whole validation data.
    """

    def counted() -> Iterator[Batch]:
        for index in range(batches.steps_per_epoch):
            advance()
            yield from batches.step(index).micro_batches

    loss, measures = engine.measure(counted, batches.loss_weight)
    return EvaluationResult(loss, batches.num_trained_tokens, measures)

"""Evaluation on the validation split: the same loss as in training, weighted by tokens."""

from llmforge.train.batches import TrainingBatches
from llmforge.train.engine import TrainingEngine
from llmforge.train.losses import LossFunction


def evaluation_loss(engine: TrainingEngine, batches: TrainingBatches, loss_function: LossFunction) -> float:
    """Mean loss over all trained tokens of the validation data, in nats; the same number on every rank."""
    steps = (batches.step(index) for index in range(batches.steps_per_epoch))
    total = engine.evaluate((batch for step in steps for batch in step.micro_batches), loss_function)
    return total / batches.num_trained_tokens

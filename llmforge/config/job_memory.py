"""The memory plan of a whole job: gathers what `memory_plan.py` needs from the job, its model and its data.

In: a resolved job, what is known of its model, and the sizes of its sequences. Out: a plan, or None where the sizes of
the model or of its adapter are not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.finding import descend
from llmforge.config.job import JobConfig
from llmforge.config.memory_plan import (
    LargestBatch,
    MemoryPlan,
    TrainedModel,
    plan_activations,
    plan_state,
    read_sharding,
)
from llmforge.config.model_shape import ModelShape, count_adapter_parameters


@dataclass(frozen=True)
class ModelSizes:
    """What is known of a model before a weight is loaded."""

    shape: ModelShape | None = None
    """None for a family whose layers are not known."""
    num_stored: int | None = None
    """Parameters by the headers of the weight files; None where these are not at hand."""
    hidden_size: int | None = None

    @property
    def num_parameters(self) -> int | None:
        """Of the base model."""
        return self.num_stored if self.shape is None else self.shape.num_parameters


UNKNOWN_MODEL = ModelSizes()


@dataclass(frozen=True)
class SequenceSizes:
    """The sequences of the training data, in tokens."""

    longest_tokens: int
    most_trained: int
    """Most trained tokens of one sequence."""


def trained_model(job: JobConfig, model: ModelSizes) -> TrainedModel | None:
    """How many parameters a resolved job holds and trains; None where that is not known."""
    num_base = model.num_parameters
    num_trained = num_base
    num_adapter = 0
    if job.lora_config is not None:
        num_trained = None if model.shape is None else count_adapter_parameters(model.shape, job.lora_config)
        num_adapter = num_trained or 0
    if num_base is None or num_trained is None:
        return None
    size = 4 if job.precision == "fp32" else 2
    return TrainedModel(num_base + num_adapter, num_trained, size, has_fp32_gradients=_adds_in_fp32(job, model))


def largest_batch(job: JobConfig, sequences: SequenceSizes, num_sequences: int) -> LargestBatch:
    """A micro-batch of the longest sequences."""
    assert job.context_length is not None
    num_tokens = job.context_length if job.padding == "max_length" else sequences.longest_tokens
    return LargestBatch(
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        # Logits are computed at every position that some sequence of the batch trains.
        num_logit_columns=min(num_tokens, num_sequences * sequences.most_trained),
        gradient_checkpointing=job.gradient_checkpointing,
        attention=job.attention,
    )


def plan_job(job: JobConfig, model: ModelSizes, batch: LargestBatch) -> MemoryPlan | None:
    """What one device must hold; without activations where the model's layers are not known."""
    trained = trained_model(job, model)
    if trained is None:
        return None
    parts = plan_state(trained, read_sharding(deepspeed_config_of(job, model.hidden_size or 0), job.num_devices))
    if model.shape is not None:
        parts += plan_activations(model.shape, trained, batch)
    return MemoryPlan(parts)


def _adds_in_fp32(job: JobConfig, model: ModelSizes) -> bool:
    config = deepspeed_config_of(job, model.hidden_size or 0)
    return job.precision != "fp32" and descend(config, ("data_types", "grad_accum_dtype"))[1] == "fp32"

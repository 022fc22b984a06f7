"""The memory plan of a whole job: gathers what `memory_plan.py` needs from the job, its model and its data.

In: a resolved job, what is known of its model, and the sizes of its sequences. Out: a plan, or None where the sizes of
the model or of its adapter are not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.activation_plan import LOGITS_AT_ONCE, LargestBatch, plan_activations
from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.finding import descend
from llmforge.config.job import JobConfig
from llmforge.config.memory_plan import (
    ADAM_MOMENTS,
    MemoryPlan,
    OptimizerSize,
    QuantizedWeights,
    TrainedModel,
    plan_state,
    read_sharding,
)
from llmforge.config.model import QuantizationConfig
from llmforge.config.model_shape import ModelShape, count_adapter_parameters
from llmforge.config.training import Adafactor, AdamW, AdamW8bit, OptimizerConfig, Sgd

_BLOCK, _SECOND_BLOCK = 64, 256
"""Weights that share a scale in 4 bits, and scales that share one in double quantization: bitsandbytes' defaults."""


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
    return TrainedModel(
        num_base + num_adapter,
        num_trained,
        size,
        has_fp32_gradients=_adds_in_fp32(job, model),
        quantized=None if job.quantization is None else quantized_weights(model.shape, job.quantization),
        optimizer=_optimizer_size(job.optimizer),
    )


def _optimizer_size(optimizer: OptimizerConfig) -> OptimizerSize:
    match optimizer:
        case AdamW():
            return ADAM_MOMENTS
        case AdamW8bit():  # every 256 numbers share a scale in fp32
            return OptimizerSize(2 * (1 + 4 / 256), "Adam moments in 8 bits")
        case Adafactor():
            return OptimizerSize(0, "sums of rows and columns, which are few")
        case Sgd():
            return OptimizerSize(4 if optimizer.momentum else 0, "momentum")


def quantized_weights(shape: ModelShape | None, quantization: QuantizationConfig) -> QuantizedWeights | None:
    """The weights of the linear layers as bitsandbytes holds them; None where the layers are not known.

    Of 4 bits, every 64 weights share a scale in fp32, or in one byte of which every 256 share another scale in fp32
    (double quantization; Dettmers et al. 2023, "QLoRA", section 3). Of 8 bits, every output has a scale in fp32.
    """
    if shape is None:
        return None
    sizes = [(linear.num_inputs * linear.num_outputs, linear.num_outputs) for linear in shape.linear_layers()]
    num_weights = sum(size for size, _ in sizes)
    if quantization.bits == 8:
        return QuantizedWeights(num_weights, num_weights + 4 * sum(outputs for _, outputs in sizes))
    num_scales = sum(-(-size // _BLOCK) for size, _ in sizes)
    if not quantization.double_quantization:
        return QuantizedWeights(num_weights, num_weights // 2 + 4 * num_scales)
    num_second_scales = sum(-(-size // (_BLOCK * _SECOND_BLOCK)) for size, _ in sizes)
    return QuantizedWeights(num_weights, num_weights // 2 + num_scales + 4 * num_second_scales)


def largest_batch(job: JobConfig, sequences: SequenceSizes, num_sequences: int) -> LargestBatch:
    """A micro-batch of the longest sequences."""
    assert job.context_length is not None
    padded_tokens = 2 * job.context_length if job.is_paired else job.context_length  # both conversations of a pair
    num_tokens = padded_tokens if job.padding == "max_length" else sequences.longest_tokens
    return LargestBatch(
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        num_trained_tokens=num_sequences * sequences.most_trained,
        gradient_checkpointing=job.gradient_checkpointing,
        has_masks=job.attention in ("sdpa", "eager"),
        keeps_scores=job.attention == "eager",
        trains_head=job.lora_config is None or "lm_head" in (job.lora_config.modules_to_save or ()),
        logits_at_once=LOGITS_AT_ONCE["cpu" if job.accelerator == "cpu" else "gpu"],
    )


def plan_job(job: JobConfig, model: ModelSizes, batch: LargestBatch) -> MemoryPlan | None:
    """What one device must hold where the job has its fewest devices.

    Without activations where the model's layers are not known.
    """
    trained = trained_model(job, model)
    if trained is None:
        return None
    parts = plan_state(trained, read_sharding(deepspeed_config_of(job, model.hidden_size or 0), job.min_devices))
    if model.shape is not None:
        parts += plan_activations(model.shape, trained, batch)
    return MemoryPlan(parts)


def _adds_in_fp32(job: JobConfig, model: ModelSizes) -> bool:
    config = deepspeed_config_of(job, model.hidden_size or 0)
    return job.precision != "fp32" and descend(config, ("data_types", "grad_accum_dtype"))[1] == "fp32"

"""How fast training can go: arithmetic on sizes and on an accelerator's data sheet, an estimate.

The operations are those of `operations.py`, which the metrics of a run count as well; here the second forward pass of
gradient checkpointing is among them, since it takes time.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.accelerators import Accelerator
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import ModelSizes
from llmforge.config.model import LoraConfig
from llmforge.config.model_shape import ModelShape, count_adapter_parameters
from llmforge.config.operations import StepOperations, StepTokens, Weights, attention_passes, passes

SHARE_OF_PEAK = 0.4
"""What training usually reaches of a data sheet's peak."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all devices together, trained or not, and the formula that gave them."""

    tokens_per_second: float
    formula: str


def estimate_speed(
    job: JobConfig, model: ModelSizes, accelerator: Accelerator, *, tokens_per_example: float, trained_share: float
) -> Speed | None:
    """The speed of a resolved job; None where the size of the model or the device's peak is not known.

    `tokens_per_example` is the mean, taken for the length of each: longer ones among them take more than is counted.
    """
    if model.num_parameters is None or accelerator.peak_tflops is None or job.precision == "fp32":
        return None
    operations = _operations(model, model.num_parameters, job.lora_config)
    num_forward_passes = 2 if job.gradient_checkpointing else 1
    mean_token = StepTokens(1, trained_share, tokens_per_example)
    per_token = operations.needed(mean_token, num_forward_passes=num_forward_passes)
    formula = _formula(operations, mean_token, num_forward_passes)
    peak = accelerator.peak_tflops
    return Speed(
        SHARE_OF_PEAK * peak * 1e12 * job.max_devices / per_token,
        f"{job.max_devices} x {SHARE_OF_PEAK:.0%} of the {peak:g} TFLOP/s of {accelerator.name} / ({formula})",
    )


def _operations(model: ModelSizes, num_parameters: int, lora: LoraConfig | None) -> StepOperations:
    """As far as known: without the sizes of the layers every parameter counts as a weight of the decoder."""
    shape = model.shape
    if shape is None:
        decoder = Weights(trained=num_parameters) if lora is None else Weights(frozen=num_parameters)
        return StepOperations(decoder, Weights(), 0, 0, num_parameters)
    decoder_weights = sum(linear.num_inputs * linear.num_outputs for linear in shape.linear_layers())
    head_weights = shape.num_embedding_parameters
    trains_head = lora is None or "lm_head" in (lora.modules_to_save or ())
    return StepOperations(
        decoder=Weights(trained=decoder_weights)
        if lora is None
        else Weights(decoder_weights, _adapter_weights(shape, lora)),
        head=Weights(trained=head_weights) if trains_head else Weights(frozen=head_weights),
        num_layers=shape.num_layers,
        attention_width=shape.num_heads * shape.head_dim,
        num_parameters=num_parameters,
    )


def _adapter_weights(shape: ModelShape, lora: LoraConfig) -> int:
    """Of the matrices beside the linear layers; none where they cannot be counted, for they are few."""
    matrices = lora.model_copy(update={"modules_to_save": None, "use_dora": False, "lora_bias": False})
    return count_adapter_parameters(shape, matrices) or 0


def _formula(operations: StepOperations, mean_token: StepTokens, num_forward_passes: int) -> str:
    frozen_passes, trained_passes = passes(num_forward_passes)
    counts = (
        (frozen_passes, operations.decoder.frozen, "frozen weights"),
        (trained_passes, operations.decoder.trained, "trained weights"),
    )
    terms = [f"{per_weight} x {count:,} {name}" for per_weight, count, name in counts if count]
    head = operations.head
    if operations.num_layers:
        terms.append(
            f"{passes(1)[1 if head.trained else 0]} x {head.frozen + head.trained:,} weights of the output layer "
            f"x {mean_token.num_trained_tokens:.0%} trained tokens"
        )
        terms.append(
            f"{attention_passes(num_forward_passes)} x {operations.num_layers} layers "
            f"x {operations.attention_width:,} wide x {mean_token.num_token_pairs:,.0f} / 2 tokens seen"
        )
    return " + ".join(terms)

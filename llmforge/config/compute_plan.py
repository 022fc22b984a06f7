"""How fast training can go: arithmetic on sizes and on an accelerator's data sheet, an estimate.

Floating point operations are counted as Kaplan et al. (2020, "Scaling laws for neural language models", section 2.1)
do: 2 for each weight and token in the forward pass, twice that in the backward pass, half of which is the gradient of
the weights, which a LoRA adapter does not take. Look-ups in the input embedding are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.accelerators import Accelerator
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import ModelSizes

SHARE_OF_PEAK = 0.4
"""What training usually reaches of a data sheet's peak."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all devices together, trained or not, and the formula that gave them."""

    tokens_per_second: float
    formula: str


def estimate_speed(
    job: JobConfig, model: ModelSizes, accelerator: Accelerator, tokens_per_sequence: float
) -> Speed | None:
    """The speed of a resolved job; None where the size of the model or the device's peak is not known.

    `tokens_per_sequence` is the mean, each of which attends to the whole sequence.
    """
    if model.num_parameters is None or accelerator.peak_tflops is None or job.precision == "fp32":
        return None
    weights = model.num_parameters
    if model.shape is not None and not model.shape.ties_embeddings:
        weights -= model.shape.num_embedding_parameters
    again = 1 if job.gradient_checkpointing else 0
    passes = 2 + (4 if job.lora_config is None else 2) + 2 * again
    per_token = float(passes * weights)
    formula = f"{passes} x {weights:,} weights"
    if model.shape is not None:
        width, layers = model.shape.num_heads * model.shape.head_dim, model.shape.num_layers
        per_token += (12 + 4 * again) * layers * width * tokens_per_sequence
        formula += f" + {12 + 4 * again} x {layers} layers x {width:,} wide x {tokens_per_sequence:,.0f} tokens seen"
    peak = accelerator.peak_tflops
    return Speed(
        SHARE_OF_PEAK * peak * 1e12 * job.num_devices / per_token,
        f"{job.num_devices} x {SHARE_OF_PEAK:.0%} of the {peak:g} TFLOP/s of {accelerator.name} / ({formula})",
    )

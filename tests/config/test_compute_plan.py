"""The estimated speed, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from llmforge.config.accelerators import ACCELERATORS, Accelerator
from llmforge.config.compute_plan import Speed, estimate_speed
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import UNKNOWN_MODEL, ModelSizes
from llmforge.config.model_shape import ModelShape
from tests.config.conftest import Load

DEVICE = Accelerator("L4", 24, 100.0)
SHAPE = ModelShape("llama", 1000, 64, 160, 3, 8, 4, 8, ties_embeddings=False)
MODEL = ModelSizes(SHAPE)
# In each of 3 layers q and o, k and v, gate, up and down.
DECODER = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
HEAD = 1000 * 64
ADAPTER = 3 * 8 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 160))
LORA = "lora_config: {target_modules: all-linear}"


def sized(job: JobConfig) -> JobConfig:
    return job.model_copy(update={"precision": "bf16"})


def estimate(job: JobConfig, model: ModelSizes, device: Accelerator = DEVICE) -> Speed | None:
    return estimate_speed(job, model, device, tokens_per_example=50.0, trained_share=0.25)


@pytest.mark.parametrize(
    ("text", "weights", "weights_text", "head_passes", "attention_passes"),
    [
        ("", 8 * DECODER, f"8 x {DECODER:,} trained weights", 6, 16),
        ("gradient_checkpointing: false", 6 * DECODER, f"6 x {DECODER:,} trained weights", 6, 12),
        (
            LORA,
            6 * DECODER + 8 * ADAPTER,
            f"6 x {DECODER:,} frozen weights + 8 x {ADAPTER:,} trained weights",
            4,
            16,
        ),
        (
            f"{LORA}\ngradient_checkpointing: false",
            4 * DECODER + 6 * ADAPTER,
            f"4 x {DECODER:,} frozen weights + 6 x {ADAPTER:,} trained weights",
            4,
            12,
        ),
        (
            "lora_config: {target_modules: all-linear, modules_to_save: [lm_head], use_dora: true}",
            6 * DECODER + 8 * ADAPTER,
            f"6 x {DECODER:,} frozen weights + 8 x {ADAPTER:,} trained weights",
            6,
            16,
        ),
    ],
    ids=["full", "without checkpointing", "LoRA", "LoRA without checkpointing", "LoRA and the output layer"],
)
def test_operations_of_a_token(
    load: Load, text: str, weights: int, weights_text: str, head_passes: int, attention_passes: int
) -> None:
    speed = estimate(sized(load(f"num_devices: 2\n{text}\n")), MODEL)
    assert speed is not None
    operations = weights + head_passes * HEAD / 4 + attention_passes * 3 * 64 * 50 / 2
    assert speed.tokens_per_second == pytest.approx(2 * 0.4 * 100e12 / operations)
    assert speed.formula == (
        f"2 x 40% of the 100 TFLOP/s of L4 / ({weights_text} + "
        f"{head_passes} x 64,000 weights of the output layer x 25% trained tokens + "
        f"{attention_passes} x 3 layers x 64 wide x 50 / 2 tokens seen)"
    )


def test_a_model_of_unknown_layers(load: Load) -> None:
    unknown = ModelSizes(num_stored=10**9)
    speed = estimate(sized(load("")), unknown)
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(0.4 * 100e12 / 8e9)
    assert speed.formula == "1 x 40% of the 100 TFLOP/s of L4 / (8 x 1,000,000,000 trained weights)"
    with_adapter = estimate(sized(load("lora_config: {}")), unknown)
    assert with_adapter is not None
    assert with_adapter.tokens_per_second == pytest.approx(0.4 * 100e12 / 6e9)


def test_tied_embeddings_are_multiplied_too(load: Load) -> None:
    tied = ModelSizes(ModelShape("llama", 1000, 64, 160, 3, 8, 4, 8, ties_embeddings=True))
    assert estimate(sized(load("")), tied) == estimate(sized(load("")), MODEL)


def test_what_is_not_known(load: Load) -> None:
    assert estimate(sized(load("")), UNKNOWN_MODEL) is None
    assert estimate(sized(load("")), MODEL, ACCELERATORS["P4"]) is None
    in_fp32 = load("").model_copy(update={"precision": "fp32"})
    assert estimate(in_fp32, MODEL) is None  # the peak is that of 16 bits

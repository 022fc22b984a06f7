"""The estimated speed, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from llmforge.config.accelerators import ACCELERATORS, Accelerator
from llmforge.config.compute_plan import estimate_speed
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import UNKNOWN_MODEL, ModelSizes
from llmforge.config.model_shape import ModelShape
from tests.config.conftest import Load

DEVICE = Accelerator("L4", 24, 100.0)
SHAPE = ModelShape("llama", 1000, 64, 160, 3, 8, 4, 8, ties_embeddings=False)
MODEL = ModelSizes(SHAPE)
# Without the input embedding: the output layer, and in each of 3 layers q and o, k and v, gate, up and down, two norms;
# and the last norm.
WEIGHTS = 64_000 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64) + 64


def sized(job: JobConfig) -> JobConfig:
    return job.model_copy(update={"precision": "bf16"})


@pytest.mark.parametrize(
    ("text", "passes", "attention_passes"),
    [
        ("", 8, 16),
        ("gradient_checkpointing: false", 6, 12),
        ("lora_config: {}", 6, 16),
        ("lora_config: {}\ngradient_checkpointing: false", 4, 12),
    ],
)
def test_operations_of_a_token(load: Load, text: str, passes: int, attention_passes: int) -> None:
    speed = estimate_speed(sized(load(f"num_devices: 2\n{text}\n")), MODEL, DEVICE, 50.0)
    assert speed is not None
    operations = passes * WEIGHTS + attention_passes * 3 * 64 * 50
    assert speed.tokens_per_second == pytest.approx(2 * 0.4 * 100e12 / operations)
    assert speed.formula == (
        f"2 x 40% of the 100 TFLOP/s of L4 / ({passes} x {WEIGHTS:,} weights + "
        f"{attention_passes} x 3 layers x 64 wide x 50 tokens seen)"
    )


def test_a_model_of_unknown_layers(load: Load) -> None:
    speed = estimate_speed(sized(load("")), ModelSizes(num_stored=10**9), DEVICE, 50.0)
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(0.4 * 100e12 / 8e9)
    assert speed.formula == "1 x 40% of the 100 TFLOP/s of L4 / (8 x 1,000,000,000 weights)"


def test_tied_embeddings_are_multiplied_too(load: Load) -> None:
    tied = ModelSizes(ModelShape("llama", 1000, 64, 160, 3, 8, 4, 8, ties_embeddings=True))
    assert estimate_speed(sized(load("")), tied, DEVICE, 50.0) == estimate_speed(sized(load("")), MODEL, DEVICE, 50.0)


def test_what_is_not_known(load: Load) -> None:
    assert estimate_speed(sized(load("")), UNKNOWN_MODEL, DEVICE, 50.0) is None
    assert estimate_speed(sized(load("")), MODEL, ACCELERATORS["P4"], 50.0) is None
    in_fp32 = load("").model_copy(update={"precision": "fp32"})
    assert estimate_speed(in_fp32, MODEL, DEVICE, 50.0) is None  # the peak is that of 16 bits

"""The choice of the ZeRO stage: the lowest that fits."""

from __future__ import annotations

import pytest

from llmforge.config.memory_plan import TrainedModel
from llmforge.config.zero import choose_zero_stage

GIB = 2**30
LLAMA_8B_FULL = TrainedModel(8_000_000_000, 8_000_000_000, 2, has_fp32_gradients=True)
LLAMA_8B_LORA = TrainedModel(8_080_000_000, 80_000_000, 2, has_fp32_gradients=True)


def test_the_highest_stage_where_none_fits() -> None:
    stage, reason = choose_zero_stage(LLAMA_8B_FULL, 2, 24 * GIB, highest=2)
    assert stage == 2 and reason.startswith("even shared by 2 devices the model state takes ")


@pytest.mark.parametrize(
    ("model", "num_devices", "memory_gib", "lowest", "stage"),
    [
        (LLAMA_8B_FULL, 1, 80, 1, 1),
        (LLAMA_8B_FULL, 8, 141, 1, 1),
        (LLAMA_8B_FULL, 8, 80, 1, 2),
        (LLAMA_8B_FULL, 16, 40, 1, 2),
        (LLAMA_8B_FULL, 16, 24, 1, 3),
        (LLAMA_8B_LORA, 4, 80, 1, 1),
        (LLAMA_8B_LORA, 4, 24, 1, 3),
        (TrainedModel(1_000_000, 1_000_000, 4, has_fp32_gradients=False), 2, 8, 0, 0),
    ],
)
def test_the_lowest_stage_that_fits(
    model: TrainedModel, num_devices: int, memory_gib: int, lowest: int, stage: int
) -> None:
    chosen, reason = choose_zero_stage(model, num_devices, memory_gib * GIB, lowest=lowest)
    assert chosen == stage
    assert reason


def test_the_reason_has_numbers() -> None:
    # 8e9 x (2 + (4 + 12) / 8) and a bucket of 5e8 x 2 B
    assert choose_zero_stage(LLAMA_8B_FULL, 8, 80 * GIB, lowest=1) == (
        2, "30.7 GiB of model state per device fit into 48.0 GiB"
    )  # fmt: skip
    # 8e9 x (2 + 4 + 12) / 2, the bucket, and 1e9 parameters that are whole at a time
    assert choose_zero_stage(LLAMA_8B_FULL, 2, 24 * GIB, lowest=1) == (
        3,
        "even shared by 2 devices the model state takes 69.8 GiB of 14.4 GiB per device; "
        "use more devices, or offload_optimizer in the deepspeed section",
    )


@pytest.mark.parametrize(
    ("model", "memory", "unknown"),
    [(None, 8, "size of the model"), (LLAMA_8B_FULL, None, "memory of the devices"), (None, None, "size of the model")],
)
def test_unknown_sizes(model: TrainedModel | None, memory: int | None, unknown: str) -> None:
    assert choose_zero_stage(model, 2, memory) == (2, f"the {unknown} is not known")

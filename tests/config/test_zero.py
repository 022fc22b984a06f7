"""The choice of the ZeRO stage: the lowest that fits."""

from __future__ import annotations

import pytest

from llmforge.config.zero import ModelSize, choose_zero_stage, state_bytes

GIB = 2**30
LLAMA_8B_FULL = ModelSize(8_000_000_000, 1.0, 2)
LLAMA_8B_LORA = ModelSize(8_000_000_000, 0.01, 2)


def test_memory_of_the_stages_follows_the_paper() -> None:
    """7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB (Rajbhandari et al. 2020, figure 1)."""
    size = ModelSize(7_500_000_000, 1.0, 2)
    assert [round(state_bytes(size, stage, 64) / 1e9, 1) for stage in range(4)] == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.parametrize(
    ("size", "num_devices", "memory_gib", "stage"),
    [
        (LLAMA_8B_FULL, 1, 80, 0),
        (LLAMA_8B_FULL, 8, 80, 1),
        (LLAMA_8B_FULL, 16, 40, 2),
        (LLAMA_8B_FULL, 16, 24, 3),
        (LLAMA_8B_LORA, 4, 80, 0),
        (LLAMA_8B_LORA, 4, 24, 3),
        (ModelSize(1_000_000, 1.0, 4), 2, 8, 0),
    ],
)
def test_the_lowest_stage_that_fits(size: ModelSize, num_devices: int, memory_gib: int, stage: int) -> None:
    chosen, reason = choose_zero_stage(size, num_devices, memory_gib * GIB)
    assert chosen == stage
    assert reason


def test_the_reason_has_numbers() -> None:
    assert choose_zero_stage(LLAMA_8B_FULL, 8, 80 * GIB) == (
        1, "41.0 GiB of model state per device fit into 48.0 GiB"
    )  # fmt: skip
    assert choose_zero_stage(LLAMA_8B_FULL, 2, 24 * GIB) == (
        3,
        "even sharded over 2 devices the model state takes 59.6 GiB of 14.4 GiB per device; "
        "use more devices, or offload_optimizer in the deepspeed section",
    )


@pytest.mark.parametrize(("parameters", "memory"), [(None, 8), (8, None), (None, None)])
def test_unknown_sizes(parameters: int | None, memory: int | None) -> None:
    assert choose_zero_stage(ModelSize(parameters, 1.0, 2), 2, memory)[0] == 2

"""The memory plan, against numbers worked out by hand and by the ZeRO paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmforge.config.activation_plan import LargestBatch, plan_activations
from llmforge.config.memory_plan import (
    GIB,
    MemoryPart,
    MemoryPlan,
    OptimizerSize,
    QuantizedWeights,
    Sharding,
    TrainedModel,
    plan_state,
    read_sharding,
)
from llmforge.config.model_shape import ModelShape

FULL_FP32 = TrainedModel(1000, 1000, 4, has_fp32_gradients=False)
FULL_BF16 = TrainedModel(1000, 1000, 2, has_fp32_gradients=True)
LORA_BF16 = TrainedModel(1000, 100, 2, has_fp32_gradients=True)
SHAPE = ModelShape("llama", 1000, 64, 160, 3, 8, 4, 8, ties_embeddings=False)


def state(model: TrainedModel, stage: int, num_devices: int, **changes: Any) -> dict[str, int]:
    sharding = Sharding(stage, num_devices, bucket_elements=50, live_elements=70, **changes)
    return {part.name: part.num_bytes for part in plan_state(model, sharding)}


@pytest.mark.parametrize(
    ("model", "stage", "num_devices", "parameters", "gradients", "optimizer", "buffers"),
    [
        (FULL_FP32, 0, 1, 4000, 4000, 8000, None),
        (FULL_FP32, 0, 4, 4000, 4000, 8000, 200),
        (FULL_FP32, 1, 4, 4000, 4000, 3000, 200),
        (FULL_FP32, 2, 4, 4000, 1000, 3000, 200),
        (FULL_FP32, 3, 4, 1000, 1000, 3000, 480),
        (FULL_BF16, 1, 1, 2000, 6000, 12000, None),
        (FULL_BF16, 1, 4, 2000, 6000, 3000, 200),
        (FULL_BF16, 2, 4, 2000, 1000, 3000, 100),
        (FULL_BF16, 3, 4, 500, 1000, 3000, 240),
        (LORA_BF16, 1, 1, 2000, 600, 1200, None),
        (LORA_BF16, 2, 4, 2000, 100, 300, 100),
        (LORA_BF16, 3, 4, 500, 100, 300, 240),
    ],
)
def test_what_a_device_holds(
    model: TrainedModel,
    stage: int,
    num_devices: int,
    parameters: int,
    gradients: int,
    optimizer: int,
    buffers: int | None,
) -> None:
    expected = {"parameters": parameters, "gradients": gradients, "optimizer": optimizer}
    if buffers is not None:
        expected["DeepSpeed's buffers"] = buffers
    assert state(model, stage, num_devices) == expected


@pytest.mark.parametrize(("num_bytes", "stage", "expected"), [(0, 0, 0), (4, 0, 4000), (2.03125, 1, 6031)])
def test_other_optimizers(num_bytes: float, stage: int, expected: int) -> None:
    model = replace(FULL_FP32, optimizer=OptimizerSize(num_bytes, "state"))
    assert state(model, stage, 1)["optimizer"] == expected


def test_the_optimizer_is_shared_as_the_paper_says() -> None:
    """7.5 billion parameters on 64 devices: 120 GB unshared, and 31.4 with the optimizer's 12 bytes shared
    (Rajbhandari et al. 2020, figure 1, with gradients of 2 bytes).
    """
    model = TrainedModel(7_500_000_000, 7_500_000_000, 2, has_fp32_gradients=False)
    parts = plan_state(model, Sharding(1, 64))[:3]
    assert round(sum(part.num_bytes for part in parts) / 1e9, 1) == 31.4
    alone = plan_state(model, Sharding(1, 1))[:3]
    assert sum(part.num_bytes for part in alone) == 120_000_000_000


def test_what_is_offloaded_takes_no_memory_of_the_device() -> None:
    parts = state(FULL_BF16, 3, 4, offloads_optimizer=True, offloads_parameters=True)
    assert (parts["parameters"], parts["optimizer"]) == (0, 0)


def test_quantized_weights_take_what_bitsandbytes_takes() -> None:
    """1000 weights, 800 of them in 4 bits; in stage 3 their bytes are shared as all others."""
    model = TrainedModel(1000, 100, 2, has_fp32_gradients=True, quantized=QuantizedWeights(800, 413))
    assert state(model, 1, 1)["parameters"] == 200 * 2 + 413
    assert state(model, 3, 2)["parameters"] == 407  # half of 813, rounded up
    part = plan_state(model, Sharding(1, 1))[0]
    assert part.formula == "200 x 2 B + 800 quantized x 0.516 B"


def test_formulas_give_the_numbers() -> None:
    parameters, gradients, optimizer, buffers = plan_state(FULL_BF16, Sharding(3, 4, bucket_elements=50))
    assert parameters.formula == "1,000 x 2 B / 4 devices (ZeRO stage 3)"
    assert gradients.formula == "1,000 trained x 4 B / 4 devices (ZeRO stage 3)"
    assert optimizer.formula == "1,000 trained x (4 B fp32 weight + 8 B Adam moments) / 4 devices (ZeRO stage 3)"
    assert buffers.formula == (
        "reduce_bucket_size 50 x 2 B + 1,000 parameters that are whole at a time (stage3_max_live_parameters) x 2 B"
    )


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (None, Sharding(0, 2)),
        ({"stage": 2, "reduce_bucket_size": 5e8}, Sharding(2, 2, 500_000_000)),
        (
            {"stage": 3, "stage3_max_live_parameters": 7, "offload_optimizer": {"device": "cpu"}},
            Sharding(3, 2, live_elements=7, offloads_optimizer=True),
        ),
        (
            {"stage": 3, "offload_param": {"device": "nvme"}, "offload_optimizer": {"device": "none"}},
            Sharding(3, 2, offloads_parameters=True),
        ),
    ],
)
def test_the_deepspeed_configuration(zero: dict[str, Any] | None, expected: Sharding) -> None:
    assert read_sharding({} if zero is None else {"zero_optimization": zero}, 2) == expected


def activations(batch: LargestBatch, model: TrainedModel = FULL_BF16) -> list[tuple[str, int]]:
    return [(part.name, part.num_bytes) for part in plan_activations(SHAPE, model, batch)]


def test_activations_that_are_kept() -> None:
    # 2 x 10 tokens. A layer: two norms 2 x 64 x (4 + 2 + 2), four tensors of 8 x 8 x 2 and 8 sums x 4, four of 160 x 2,
    # and 10 pairs of 2 B for every token; the last norm 64 x (4 + 2). Logits at 10 positions: 2 + 8 B each, and the
    # hidden states of these with their gradients.
    per_token = 2 * 64 * 8 + 4 * 64 * 2 + 8 * 4 + 4 * 160 * 2 + 10 * 2
    batch = LargestBatch(2, 10, 10, gradient_checkpointing=False, has_masks=True)
    assert activations(batch) == [
        ("activations", 20 * (3 * per_token + 64 * 6)),
        ("logits and their gradients", 10 * 10 * 1000 + 2 * 10 * 64 * 2),
    ]


def test_only_the_inputs_of_the_layers_are_kept() -> None:
    batch = LargestBatch(2, 10, 10, gradient_checkpointing=True, has_masks=True)
    kept = ("activations", 20 * (3 * 64 * 2 + 64 * 6))
    assert activations(batch) == [kept, ("logits and their gradients", 100_000 + 2_560)]
    # With few positions trained, a layer and the gradients on their way, 3 x 160 x 2 + 2 x 64 x 4, take more.
    per_token = 2 * 64 * 8 + 4 * 64 * 2 + 8 * 4 + 4 * 160 * 2 + 10 * 2
    few = LargestBatch(2, 10, 1, gradient_checkpointing=True, has_masks=True)
    assert activations(few) == [kept, ("one layer computed again", 20 * (per_token + 3 * 160 * 2 + 2 * 64 * 4))]


@pytest.mark.parametrize(("model", "bytes_per_pair"), [(FULL_FP32, 8 * 4), (FULL_BF16, 8 * 6)])
def test_eager_attention_keeps_its_weights(model: TrainedModel, bytes_per_pair: int) -> None:
    batch = LargestBatch(2, 10, 10, gradient_checkpointing=False)
    eager = replace(batch, has_masks=True, keeps_scores=True)
    more = activations(eager, model)[0][1] - activations(batch, model)[0][1]
    assert more == 3 * 20 * 10 * (bytes_per_pair + model.bytes_per_weight)


def test_the_output_layer_takes_chunks_and_keeps_its_gradient() -> None:
    """Chunks of 4 of 10 positions; the gradient of 64 x 1000 weights in bf16, and in fp32 added up over the chunks."""
    batch = LargestBatch(2, 10, 10, gradient_checkpointing=False, logits_at_once=4000)
    hidden = 2 * 10 * 64 * 2
    assert activations(batch)[1][1] == 4 * 1000 * 10 + hidden
    assert activations(replace(batch, trains_head=True))[1][1] == 4 * 1000 * 4 + 64_000 * 2 + 64_000 * 4 + hidden


def test_a_tenth_of_the_device_stays_free() -> None:
    plan = MemoryPlan((MemoryPart("a", 10 * GIB, ""), MemoryPart("b", 8 * GIB, "")))
    assert plan.total_bytes == 18 * GIB
    assert plan.fits(20)
    assert not plan.fits(19.9)

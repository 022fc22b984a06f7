"""Chooses DeepSpeed's ZeRO stage from sizes: arithmetic on numbers given to it.

Higher stages save memory and cost communication, so the lowest stage that fits is the fastest.
"""

from __future__ import annotations

from llmforge.config.memory_plan import GIB, MemoryPlan, Sharding, TrainedModel, plan_state

_SHARE_FOR_STATE = 0.6
"""Of a device's memory; the rest is for activations."""


def choose_zero_stage(
    model: TrainedModel | None,
    num_devices: int,
    device_memory_bytes: float | None,
    *,
    lowest: int = 0,
    highest: int = 3,
) -> tuple[int, str]:
    """(the lowest stage from `lowest` to `highest` that fits, the reason in words)."""
    if num_devices == 1:
        return lowest, "one device has nothing to share" + (", and 16 bits need stage 1" if lowest else "")
    if model is None or device_memory_bytes is None:
        unknown = "size of the model" if model is None else "memory of the devices"
        return min(2, highest), f"the {unknown} is not known"
    room = device_memory_bytes * _SHARE_FOR_STATE
    for stage in range(lowest, highest + 1):
        needed = state_bytes(model, stage, num_devices)
        if needed <= room:
            return stage, f"{_gib(needed)} of model state per device fit into {_gib(room)}"
    return highest, (
        f"even shared by {num_devices} devices the model state takes {_gib(needed)} of {_gib(room)} per device; "
        "use more devices, or offload_optimizer in the deepspeed section"
    )


def state_bytes(model: TrainedModel, stage: int, num_devices: int) -> int:
    """Bytes of parameters, gradients, optimizer and DeepSpeed's buffers on one device."""
    return MemoryPlan(plan_state(model, Sharding(stage, num_devices))).total_bytes


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"

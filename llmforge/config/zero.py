"""Chooses DeepSpeed's ZeRO stage from sizes: arithmetic on numbers given to it.

Higher stages save memory and cost communication, so the lowest stage that fits is the fastest. Memory per device by the
ZeRO paper (Rajbhandari et al. 2020, section 3): weights, gradients and Adam's state, of which stage 1 shards the state,
stage 2 the gradients too, stage 3 the weights too.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHARE_FOR_STATE = 0.6
"""Of a device's memory; the rest is for activations and buffers."""
_GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """What decides how much memory training takes."""

    num_parameters: int | None
    trained_share: float
    """Trained parameters per parameter, from 0 to 1."""
    bytes_per_weight: int


def state_bytes(size: ModelSize, stage: int, num_devices: int) -> float:
    """Bytes of weights, gradients and optimizer state on one device, without activations."""
    parameters = size.num_parameters or 0
    trained = parameters * size.trained_share
    weights = parameters * size.bytes_per_weight
    gradients = trained * size.bytes_per_weight
    optimizer = trained * (8 if size.bytes_per_weight == 4 else 12)  # two moments in fp32, and fp32 weights beside bf16
    return (
        weights / (num_devices if stage >= 3 else 1)
        + gradients / (num_devices if stage >= 2 else 1)
        + optimizer / (num_devices if stage >= 1 else 1)
    )


def choose_zero_stage(size: ModelSize, num_devices: int, device_memory_bytes: int | None) -> tuple[int, str]:
    """(the lowest stage that fits, the reason in words)."""
    if num_devices == 1:
        return 0, "one device has nothing to share"
    if size.num_parameters is None or device_memory_bytes is None:
        return 2, "the memory of the devices or the size of the model is not known"
    room = device_memory_bytes * _SHARE_FOR_STATE
    for stage in range(4):
        needed = state_bytes(size, stage, num_devices)
        if needed <= room:
            return stage, f"{_gib(needed)} of model state per device fit into {_gib(room)}"
    needed = state_bytes(size, 3, num_devices)
    return 3, (
        f"even sharded over {num_devices} devices the model state takes {_gib(needed)} of {_gib(room)} per device; "
        "use more devices, or offload_optimizer in the deepspeed section"
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"

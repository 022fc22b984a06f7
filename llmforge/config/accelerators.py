"""How much memory accelerators have, by the names that Ray gives them.

A job names one in `worker_resources` or `trainer_resources`, as `accelerator_type:A10G`.
"""

from __future__ import annotations

from collections.abc import Iterable

RESOURCE_PREFIX = "accelerator_type:"
MEMORY_GIB: dict[str, float] = {
    "P4": 8,
    "K80": 12,
    "P100": 16,
    "T4": 16,
    "V100": 16,
    "A10G": 24,
    "L4": 24,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "L40S": 48,
    "H100": 80,
    "H20": 96,
    "RTX-PRO-6000": 96,
    "H200": 141,
    "B200": 180,
    "AMD-Instinct-MI250X": 128,
    "AMD-Instinct-MI300X-OAM": 192,
    "AMD-Instinct-MI325X-OAM": 256,
}
"""By the data sheets of the makers; of what is sold with more than one size, the smallest."""


def find_accelerator(resources: Iterable[str]) -> str | None:
    """The name of the accelerator among the names of Ray resources; None where there is none."""
    found = (name.removeprefix(RESOURCE_PREFIX) for name in resources if name.startswith(RESOURCE_PREFIX))
    return next(found, None)

"""What accelerators can do, by the names that Ray gives them and by those that the devices give themselves.

A job names one in `worker_resources` or `trainer_resources`, as `accelerator_type:A10G`. The numbers are those of the
makers' data sheets; of what is sold in more than one form, those of the smallest and of the slowest. A device at hand
tells its form, as `NVIDIA H100 80GB HBM3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RESOURCE_PREFIX = "accelerator_type:"


@dataclass(frozen=True)
class Accelerator:
    """One device, as Ray counts them."""

    name: str
    memory_gib: float
    peak_tflops: float | None = None
    """Dense matrix products a second in bf16, or in fp16 on devices of before bf16, in 10^12 operations; None where the
    data sheet gives none."""


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("P4", 8),
        Accelerator("K80", 12),
        Accelerator("P100", 16, 18.7),
        Accelerator("T4", 16, 65),
        Accelerator("V100", 16, 112),
        Accelerator("A10G", 24, 70),
        Accelerator("L4", 24, 121),
        Accelerator("A100", 40, 312),
        Accelerator("A100-40G", 40, 312),
        Accelerator("A100-80G", 80, 312),
        Accelerator("L40S", 48, 362),
        Accelerator("H100", 80, 756),
        Accelerator("H20", 96, 148),
        Accelerator("RTX-PRO-6000", 96),
        Accelerator("H200", 141, 835),
        Accelerator("B200", 180, 2250),
        Accelerator("AMD-Instinct-MI250X", 64, 191.5),  # a card of 128 GiB is two devices
        Accelerator("AMD-Instinct-MI300X-OAM", 192, 1307),
        Accelerator("AMD-Instinct-MI325X-OAM", 256, 1307),
    )
}

_FORMS = (
    (r"V100-SXM[23]", Accelerator("V100", 16, 125)),
    (r"V100-PCIE", ACCELERATORS["V100"]),
    (r"P100-SXM2", Accelerator("P100", 16, 21.2)),
    (r"P100-PCIE", ACCELERATORS["P100"]),
    (r"A100.*80GB", ACCELERATORS["A100-80G"]),
    (r"A100.*40GB", ACCELERATORS["A100-40G"]),
    (r"H100 NVL", Accelerator("H100", 94, 835)),
    (r"H100 80GB HBM3", Accelerator("H100", 80, 989)),
    (r"H100 (PCIe|80GB HBM2e)", ACCELERATORS["H100"]),
    (r"H200 NVL", ACCELERATORS["H200"]),
    (r"H200", Accelerator("H200", 141, 989)),
    (r"RTX PRO 6000", ACCELERATORS["RTX-PRO-6000"]),
    (r"MI250X", ACCELERATORS["AMD-Instinct-MI250X"]),
    (r"MI300X", ACCELERATORS["AMD-Instinct-MI300X-OAM"]),
    (r"MI325X", ACCELERATORS["AMD-Instinct-MI325X-OAM"]),
    *((name, ACCELERATORS[name]) for name in ("P4", "K80", "T4", "A10G", "L4", "L40S", "H20", "B200")),
)
"""Regular expressions of device names, after the maker's; the first that matches counts."""
_MAKER = r"(NVIDIA |Tesla |NVIDIA Tesla |AMD Instinct )?"


def named_accelerator(*resources: Mapping[str, float] | None) -> str | None:
    """The name of the accelerator among Ray resources, known here or not; None where they name none."""
    names = (name for mapping in resources for name in mapping or ())
    return next((name.removeprefix(RESOURCE_PREFIX) for name in names if name.startswith(RESOURCE_PREFIX)), None)


def find_accelerator(*resources: Mapping[str, float] | None) -> Accelerator | None:
    """The accelerator that Ray resources name; None where they name none that is known here."""
    return ACCELERATORS.get(named_accelerator(*resources) or "")


def accelerator_of_device(device_name: str) -> Accelerator | None:
    """What a device is by the name that its driver gives it, such as `NVIDIA H100 80GB HBM3`; None where that is not
    known here, or where the device is a slice of one (MIG), whose peak is not the whole device's.
    """
    if "MIG" in device_name.split():
        return None
    matches = (accelerator for form, accelerator in _FORMS if re.match(rf"{_MAKER}{form}\b", device_name))
    return next(matches, None)

"""The table of accelerators, against the names of Ray."""

from __future__ import annotations

import pytest
from ray.util.accelerators import accelerators

from llmforge.config.accelerators import ACCELERATORS, accelerator_of_device, find_accelerator, named_accelerator

NAMES_OF_RAY = {value for name, value in vars(accelerators).items() if not name.startswith("_")}


def test_the_names_are_those_of_ray() -> None:
    assert ACCELERATORS.keys() <= NAMES_OF_RAY


@pytest.mark.parametrize(
    ("resources", "name"),
    [
        ((None, None), None),
        (({"CPU": 2, "memory": 10}, None), None),
        (({"CPU": 2, "accelerator_type:A10G": 0.001}, {"accelerator_type:H100": 1}), "A10G"),
        ((None, {"accelerator_type:H100": 1}), "H100"),
        (({"accelerator_type:TPU-V4": 1},), "TPU-V4"),
    ],
)
def test_the_named_one(resources: tuple[dict[str, float] | None, ...], name: str | None) -> None:
    assert named_accelerator(*resources) == name
    found = find_accelerator(*resources)
    assert found == (None if name in (None, "TPU-V4") else ACCELERATORS[str(name)])


def test_a_faster_one_is_never_smaller() -> None:
    """A guard on slips of the pen: within the makers' lines peak and memory rise together."""
    line = [ACCELERATORS[name] for name in ("T4", "A10G", "A100", "H100", "H200", "B200")]
    assert line == sorted(line, key=lambda one: (one.peak_tflops or 0, one.memory_gib))
    assert [one.memory_gib for one in line] == sorted(one.memory_gib for one in line)


@pytest.mark.parametrize(
    ("device_name", "name", "peak_tflops", "memory_gib"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989, 80),
        ("NVIDIA H100 PCIe", "H100", 756, 80),
        ("NVIDIA H100 NVL", "H100", 835, 94),
        ("NVIDIA H200", "H200", 989, 141),
        ("NVIDIA H200 NVL", "H200", 835, 141),
        ("NVIDIA H20", "H20", 148, 96),
        ("NVIDIA B200", "B200", 2250, 180),
        ("NVIDIA A100-SXM4-80GB", "A100-80G", 312, 80),
        ("NVIDIA A100 80GB PCIe", "A100-80G", 312, 80),
        ("A100-SXM4-40GB", "A100-40G", 312, 40),
        ("NVIDIA A100-PCIE-40GB", "A100-40G", 312, 40),
        ("NVIDIA A10G", "A10G", 70, 24),
        ("NVIDIA L4", "L4", 121, 24),
        ("NVIDIA L40S", "L40S", 362, 48),
        ("Tesla T4", "T4", 65, 16),
        ("Tesla V100-SXM2-16GB", "V100", 125, 16),
        ("Tesla V100-PCIE-16GB", "V100", 112, 16),
        ("AMD Instinct MI300X", "AMD-Instinct-MI300X-OAM", 1307, 192),
    ],
)
def test_the_form_of_a_device_at_hand(device_name: str, name: str, peak_tflops: float, memory_gib: float) -> None:
    found = accelerator_of_device(device_name)
    assert found is not None
    assert (found.name, found.peak_tflops, found.memory_gib) == (name, peak_tflops, memory_gib)


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA H100",  # which form is not said, and the slowest one's peak would flatter
        "NVIDIA A10",
        "NVIDIA L40",
        "NVIDIA T400",
        "NVIDIA GeForce RTX 4090",
        "",
    ],
)
def test_no_peak_is_taken_from_a_device_that_is_another(device_name: str) -> None:
    assert accelerator_of_device(device_name) is None

"""The table of accelerators, against the names of Ray."""

from __future__ import annotations

import pytest
from ray.util.accelerators import accelerators

from llmforge.config.accelerators import ACCELERATORS, find_accelerator, named_accelerator

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

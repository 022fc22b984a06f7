"""Memory that does not suffice: a real allocation that the operating system refuses, and what is said of it."""

import subprocess
import sys

import pytest
import torch

from llmforge.errors import ModelError
from llmforge.train.memory import shortage_explained

GIB = 2**30
REFUSED = """
import resource, torch
from llmforge.errors import ModelError
from llmforge.train.memory import shortage_explained
resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
try:
    with shortage_explained("the largest micro-batch", 24 * 2**30, lambda: ["train_batch_size_per_device: 2", "b: 3"]):
        torch.empty(64 * 2**30, dtype=torch.uint8).fill_(1)
except ModelError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_shortage_names_what_would_fit() -> None:
    """In a process of its own, which may not have as much."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    assert first.startswith("out of memory: the largest micro-batch does not fit into the 24.0 GiB of a device (")
    assert "can't allocate memory" in first
    assert lines == [
        "what should fit, by the memory plan (any one line):",
        "  train_batch_size_per_device: 2",
        "  b: 3",
    ]


def test_where_nothing_helps_it_says_so() -> None:
    with (
        pytest.raises(ModelError, match=r"no setting is known that would fit: train an adapter \(lora_config\)"),
        shortage_explained("a batch", 8 * GIB, list),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), shortage_explained("a batch", 8 * GIB, list):
        raise RuntimeError("shapes differ")

"""The small real model of the tests of exports, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model only waits for more of them."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def stories(material: Path) -> Path:
    """A pretrained Llama of 260 000 parameters."""
    return material / "models" / "stories260K-hf"

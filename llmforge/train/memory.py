"""Memory of a training worker: what it has taken, and what is said when it does not suffice.

In: a device; a job and the sizes of its model and data. Out: bytes; an error that names the settings that would fit.
"""

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from llmforge.config.memory_plan import GIB
from llmforge.errors import ModelError

_CPU_SHORTAGE = "DefaultCPUAllocator: can't allocate memory"
"""What torch says where the operating system gives it no more."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most so far: of the device where it has memory of its own, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_memory_bytes(device: torch.device, ranks_on_node: int) -> int:
    """What a rank can take: its device's own memory, else its share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // ranks_on_node


def is_shortage(error: RuntimeError) -> bool:
    """Whether torch says that memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or _CPU_SHORTAGE in str(error)


@contextmanager
def shortage_explained(what: str, device_bytes: int, find_settings: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turn the want of memory within this context into a `ModelError`: what was computed, and what would fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        raise ModelError(_shortage(what, device_bytes, find_settings(), str(error))) from error


def _shortage(what: str, device_bytes: int, settings: Sequence[str], found: str) -> str:
    listed = "".join(f"\n  {setting}" for setting in settings)
    advice = (
        f"what should fit, by the memory plan (any one line):{listed}"
        if settings
        else (
            "no setting is known that would fit: train an adapter (lora_config), quantize its base (quantization), or "
            "take more or larger devices"
        )
    )
    return (
        f"out of memory: {what} does not fit into the {device_bytes / GIB:.1f} GiB of a device "
        f"({found.strip().splitlines()[0]})\n{advice}"
    )

"""Run as a program: tries torch, the devices and their communication, in a process that may die of it.

Out: on stdout what `facts.py` describes, a line for each stage as it is passed. Whatever goes wrong ends the process;
the stage without a line is the one it has died in, and the end of stderr says of what. `compute.py` reads both.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from llmforge.doctor.facts import CommunicationFacts, Device, DevicesFacts, TorchFacts, tell

_RANKS_ON_CPU = 2


def _devices() -> DevicesFacts:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return DevicesFacts(
        devices=tuple(
            Device(name=one.name, memory_gib=one.total_memory / 2**30, has_bf16=one.major >= 8) for one in found
        )
    )


def _add_up(rank: int, num_ranks: int, backend: str, meeting_point: str) -> None:
    """One rank of a sum over all: every GPU, or processes of the CPU that find each other by this machine's address."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{meeting_point}", rank=rank, world_size=num_ranks)
    numbers = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    expected = num_ranks * (num_ranks + 1) / 2
    if not bool((numbers == expected).all()):
        raise ArithmeticError(f"{backend}: the sum over {num_ranks} ranks is {numbers[0].item()}, not {expected}")
    dist.destroy_process_group()


def _communicate(num_devices: int) -> CommunicationFacts:
    backend, num_ranks = ("nccl", num_devices) if num_devices else ("gloo", _RANKS_ON_CPU)
    with TemporaryDirectory() as folder:
        arguments = (num_ranks, backend, str(Path(folder, "meeting-point")))
        spawn(_add_up, args=arguments, nprocs=num_ranks)  # type: ignore[no-untyped-call]
    return CommunicationFacts(backend=backend, num_ranks=num_ranks)


def main() -> None:
    """Go through the stages."""
    has_driver = Path("/dev/nvidiactl").exists()
    tell(TorchFacts(version=torch.__version__, cuda=torch.version.cuda, has_driver=has_driver))
    if torch.version.cuda is not None and has_driver:
        torch.cuda.current_device()  # its error says what of the driver is wrong
    devices = _devices()
    tell(devices)
    tell(_communicate(len(devices.devices)))


if __name__ == "__main__":
    main()

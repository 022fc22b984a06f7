"""Ranks without Ray: processes with gloo, forked from one that has done the imports, which take longest of all."""

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

IMPORTED = ["deepspeed", "peft", "transformers.models.llama.modeling_llama", "llmforge.train.engine"]


def run_ranks(function: Callable[..., None], num_workers: int, *arguments: object) -> None:
    """Call `function(rank, *arguments)` in every rank of one group."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start_processes(_rank, args=(function, num_workers, port, arguments), nprocs=num_workers, start_method="forkserver")  # type: ignore[no-untyped-call]


def _rank(rank: int, function: Callable[..., None], num_workers: int, port: int, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(num_workers)}  # DeepSpeed reads these
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    gc.freeze()  # DeepSpeed collects garbage many times as it starts, and what the imports have made is none
    function(rank, *arguments)
    dist.destroy_process_group()

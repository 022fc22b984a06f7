"""Run as a program: tries DeepSpeed, in a process that may die of it; see `compute_probe.py`."""

import deepspeed
from deepspeed.ops.op_builder import AsyncIOBuilder

from llmforge.doctor.facts import DeepSpeedFacts, tell

if __name__ == "__main__":
    has_nvme_offload = bool(AsyncIOBuilder().is_compatible(verbose=False))
    tell(DeepSpeedFacts(version=deepspeed.__version__, has_nvme_offload=has_nvme_offload))

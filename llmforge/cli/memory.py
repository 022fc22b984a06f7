"""The memory that a job takes on each device, in words: what `config/job_memory.py` plans, and whether it fits."""

from __future__ import annotations

from llmforge.config.accelerators import find_accelerator
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import SequenceSizes, largest_batch, plan_job
from llmforge.config.memory_plan import USABLE_SHARE, MemoryPlan
from llmforge.dataset.stats import SplitStats
from llmforge.metrics.data_page import Memory
from llmforge.metrics.summary import bytes_text
from llmforge.models.folder import ModelFacts


def plan_memory(facts: ModelFacts, job: JobConfig, train: SplitStats, device_memory_gib: float | None) -> Memory:
    """The plan for the largest batch of a job with all its numbers; `device_memory_gib` as given, None where not."""
    assert job.train_batch_size_per_device is not None
    sequences = SequenceSizes(train.longest_sample, train.most_trained)
    batch = largest_batch(job, sequences, job.train_batch_size_per_device)
    words = f"largest batch: {batch.num_sequences} x {batch.num_tokens:,} tokens"
    plan = plan_job(job, facts.sizes, batch)
    if plan is None:
        return Memory(words, None, None, "not known: the sizes of this model, or of this adapter, are not known")
    device, device_gib = _device(job, device_memory_gib)
    verdict, is_warning = _verdict(plan, device, device_gib, or_name_it(job))
    if facts.shape is None:
        verdict += "; activations are not counted, the layers of this model are not known"
    return Memory(words, plan, device_gib, verdict, is_warning)


def _device(job: JobConfig, device_memory_gib: float | None) -> tuple[str, float | None]:
    """(the device in words, its memory): as given, else by the accelerator that the job names."""
    if device_memory_gib is not None:
        return f"{device_memory_gib:g} GiB, as given", device_memory_gib
    accelerator = find_accelerator(job.worker_resources, job.trainer_resources)
    if accelerator is None:
        return "", None
    return f"{accelerator.memory_gib:g} GiB of {accelerator.name}", accelerator.memory_gib


def or_name_it(job: JobConfig) -> str:
    """The other way to say what the devices are: the end of a sentence, empty for CPUs."""
    if job.accelerator == "cpu":
        return ""
    return ", or name the accelerator in worker_resources, such as accelerator_type:A10G"


def _verdict(plan: MemoryPlan, device: str, device_gib: float | None, or_name_it: str) -> tuple[str, bool]:
    total = bytes_text(plan.total_bytes)
    if device_gib is None:
        return f"whether {total} fit is not known; give --device-memory-gib{or_name_it}", False
    usable = f"{USABLE_SHARE:.0%} of {device}"
    if plan.fits(device_gib):
        return f"{total} fit into {usable}", False
    return (
        f"{total} do not fit into {usable}; lower train_batch_size_per_device (and raise gradient_accumulation_steps) "
        "or context_length, use lora_config, a higher ZeRO stage on more devices, or offload_optimizer",
        True,
    )

"""The numbers of a job that follow from its measured data: context length, batch, epochs and steps.

In: a resolved job, what the data stage measured, and the sizes of the model. Out: the same job with these numbers, each
logged with its reason. What the job says is never changed. Pure: the same arguments give the same job.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from llmforge.config.accelerators import find_accelerator
from llmforge.config.batch_size import choose_batch_size
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import UNKNOWN_MODEL, ModelSizes, SequenceSizes, largest_batch, plan_job
from llmforge.config.memory_plan import GIB, USABLE_SHARE
from llmforge.errors import ConfigError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSizes:
    """What the data stage measured; lengths are in tokens."""

    length_p95: int
    """95th percentile of the lengths of the examples."""
    longest_tokens: int
    num_train_samples: int
    """Sequences per epoch, packs where the job packs."""
    model_context_length: int | None = None
    sequences: SequenceSizes | None = None
    """None: every one may be as long as `context_length`."""


def size_job(job: JobConfig, sizes: DataSizes, model: ModelSizes = UNKNOWN_MODEL) -> JobConfig:
    """The resolved job with the numbers that follow from its data: context length, batch, epochs and steps.

    After that `max_steps` is the number of optimizer steps of the run. Raises ConfigError where there is nothing to
    train on.
    """
    if sizes.num_train_samples == 0:
        raise ConfigError("train_path: found no sequence to train on; the data stage's statistics say what was dropped")
    job = job.model_copy(update={"context_length": job.context_length or _context_length(sizes)})
    batch_size = job.train_batch_size_per_device or _batch_size(job, sizes, model)
    job = job.model_copy(update={"train_batch_size_per_device": batch_size})
    per_epoch = steps_per_epoch(job, sizes.num_train_samples)
    num_epochs = job.num_epochs
    if num_epochs is None and job.max_steps is None:
        num_epochs = math.ceil(job.min_update_steps / per_epoch)
        reason = f"at least {job.min_update_steps} steps (min_update_steps), of which an epoch has {per_epoch}"
        _LOG.info("num_epochs: %d, for %s", num_epochs, reason)
    limits = [limit for limit in (job.max_steps, num_epochs and num_epochs * per_epoch) if limit is not None]
    max_steps = min(limits)
    if max_steps != job.max_steps:
        reason = f"an epoch has {per_epoch}, of {global_batch_size(job)} sequences each"
        _LOG.info("max_steps: %d, all steps of %d epochs; %s", max_steps, num_epochs, reason)
    return job.model_copy(update={"max_steps": max_steps, "num_epochs": num_epochs or math.ceil(max_steps / per_epoch)})


def global_batch_size(job: JobConfig) -> int:
    """Sequences per optimizer step over all devices, of a job with its batch size."""
    assert job.train_batch_size_per_device is not None
    return job.train_batch_size_per_device * job.gradient_accumulation_steps * job.max_devices


def steps_per_epoch(job: JobConfig, num_train_samples: int) -> int:
    """Optimizer steps that take every sequence once; the last may be smaller."""
    return math.ceil(num_train_samples / global_batch_size(job))


def measured_context_length(length_p95: int, model_context_length: int | None) -> tuple[int, str]:
    """(the default context length, its reason): the 95th percentile rounded up to a power of two, or the model's."""
    most = f"95 of 100 examples have at most {length_p95} tokens"
    rounded = max(8, 1 << (length_p95 - 1).bit_length())
    if model_context_length is not None and rounded > model_context_length:
        return model_context_length, f"the most that the model takes; {most}"
    return rounded, f"{most}, rounded up to a power of two"


def _batch_size(job: JobConfig, sizes: DataSizes, model: ModelSizes) -> int:
    assert job.context_length is not None
    sequences = sizes.sequences or SequenceSizes(job.context_length, job.context_length)
    accelerator = find_accelerator(job.worker_resources, job.trainer_resources)

    def with_size(size: int) -> JobConfig:
        return job.model_copy(update={"train_batch_size_per_device": size})

    def find_shortage(size: int) -> str | None:
        plan = plan_job(with_size(size), model, largest_batch(job, sequences, size))
        if accelerator is None or plan is None or plan.fits(accelerator.memory_gib):
            return None
        room = f"{USABLE_SHARE:.0%} of the {accelerator.memory_gib:g} GiB of {accelerator.name}"
        return f"take {plan.total_bytes / GIB:.1f} GiB, more than {room}"

    chosen, reason = choose_batch_size(
        sequences.longest_tokens,
        lambda size: steps_per_epoch(with_size(size), sizes.num_train_samples),
        find_shortage,
    )
    _LOG.info("train_batch_size_per_device: %d%s", chosen, reason)
    return chosen


def _context_length(sizes: DataSizes) -> int:
    chosen, reason = measured_context_length(sizes.length_p95, sizes.model_context_length)
    _LOG.info("context_length: %d; %s, the longest has %d", chosen, reason, sizes.longest_tokens)
    return chosen

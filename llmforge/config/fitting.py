"""Which other settings of a job would fit into a device that was too small for it.

In: a resolved job, the sizes of its model and sequences, the memory of the device. Out: settings in words. It trusts
the memory plan in proportion only: what did not fit took more than the device has, so a plan that said less is
stretched accordingly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmforge.config.deepspeed import highest_zero_stage, zero_stage_of
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import ModelSizes, SequenceSizes, largest_batch, plan_job
from llmforge.config.memory_plan import USABLE_SHARE
from llmforge.config.training import DeepSpeedFile

_Change = tuple[str, JobConfig]
"""A setting in words, and the job with it."""


def settings_that_fit(job: JobConfig, model: ModelSizes, sequences: SequenceSizes, device_bytes: int) -> list[str]:
    """Settings each of which would do by itself; where none does, all that it takes together, as one text.

    Empty where nothing that is known here helps, or the sizes of the model are not known.
    """
    planned = _planned_bytes(job, model, sequences)
    if planned is None:
        return []
    room = USABLE_SHARE * device_bytes / max(1.0, device_bytes / planned)

    def fits(changed: JobConfig) -> bool:
        return (_planned_bytes(changed, model, sequences) or device_bytes) <= room

    ladders = (_smaller_batches, _checkpointing, _higher_stages, _offloads)
    alone = [next((text for text, changed in ladder(job) if fits(changed)), None) for ladder in ladders]
    if any(alone):
        return [text for text in alone if text is not None]
    texts: list[str] = []
    together = job
    for ladder in ladders:
        *_, (text, changed) = [("", together), *ladder(together)]
        texts += [text] if text else []
        together = changed
        if fits(together):
            return [" and ".join(texts)]
    return []


def _planned_bytes(job: JobConfig, model: ModelSizes, sequences: SequenceSizes) -> int | None:
    assert job.train_batch_size_per_device is not None
    plan = plan_job(job, model, largest_batch(job, sequences, job.train_batch_size_per_device))
    return None if plan is None else plan.total_bytes


def _smaller_batches(job: JobConfig) -> Iterator[_Change]:
    """As the other kinds of settings: from the least change to the greatest."""
    assert job.train_batch_size_per_device is not None
    size, accumulation = job.train_batch_size_per_device, job.gradient_accumulation_steps
    while size % 2 == 0:
        size, accumulation = size // 2, accumulation * 2
        text = f"train_batch_size_per_device: {size} with gradient_accumulation_steps: {accumulation}"
        update = {"train_batch_size_per_device": size, "gradient_accumulation_steps": accumulation}
        yield text, job.model_copy(update=update)


def _checkpointing(job: JobConfig) -> Iterator[_Change]:
    if not job.gradient_checkpointing:
        yield "gradient_checkpointing: true", job.model_copy(update={"gradient_checkpointing": True})


def _higher_stages(job: JobConfig) -> Iterator[_Change]:
    if job.min_devices > 1:
        for stage in range(zero_stage_of(_deepspeed(job)) + 1, highest_zero_stage(job) + 1):
            yield f"deepspeed.zero_optimization.stage: {stage}", _with_zero(job, {"stage": stage})


def _offloads(job: JobConfig) -> Iterator[_Change]:
    zero = _deepspeed(job).get("zero_optimization", {})
    if zero_stage_of(_deepspeed(job)) >= 1 and "offload_optimizer" not in zero:
        text = "deepspeed.zero_optimization.offload_optimizer: {device: cpu}"
        yield text, _with_zero(job, {"offload_optimizer": {"device": "cpu"}})


def _with_zero(job: JobConfig, changed: dict[str, Any]) -> JobConfig:
    deepspeed = _deepspeed(job)
    zero = deepspeed.get("zero_optimization", {}) | changed
    return job.model_copy(update={"deepspeed": deepspeed | {"zero_optimization": zero}})


def _deepspeed(job: JobConfig) -> dict[str, Any]:
    assert not isinstance(job.deepspeed, DeepSpeedFile)
    return job.deepspeed or {}

"""The memory that a job takes on each device: gathers what `config/memory_plan.py` needs from a job, its model and its
data, and says in words whether it fits.
"""

from __future__ import annotations

from llmforge.config.accelerators import MEMORY_GIB, find_accelerator
from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.finding import descend
from llmforge.config.job import JobConfig
from llmforge.config.memory_plan import (
    GIB,
    USABLE_SHARE,
    LargestBatch,
    MemoryPlan,
    TrainedModel,
    plan_activations,
    plan_state,
    read_sharding,
)
from llmforge.config.model_shape import count_adapter_parameters
from llmforge.dataset.stats import DatasetStats
from llmforge.metrics.data_page import Memory
from llmforge.models.folder import ModelFacts, ModelFiles


def plan_memory(model: ModelFiles, job: JobConfig, stats: DatasetStats, device_memory_gib: float | None) -> Memory:
    """The plan for the largest batch of a job with all its numbers; `device_memory_gib` as given, None where not."""
    batch = largest_batch(job, stats)
    words = f"largest batch: {batch.num_sequences} x {batch.num_tokens:,} tokens"
    config = deepspeed_config_of(job, model.facts.hidden_size or 0)
    adds_in_fp32 = descend(config, ("data_types", "grad_accum_dtype"))[1] == "fp32"
    trained = _trained_model(model.facts, job, adds_in_fp32)
    if trained is None:
        return Memory(
            words, None, None, "not known: this model, or this adapter, is of a kind whose sizes are not known"
        )
    parts = plan_state(trained, read_sharding(config, job.num_devices))
    if model.facts.shape is not None:
        parts += plan_activations(model.facts.shape, trained, batch)
    plan = MemoryPlan(parts)
    device, device_gib = _device(job, device_memory_gib)
    verdict, is_warning = _verdict(plan, device, device_gib)
    if model.facts.shape is None:
        verdict += "; activations are not counted, the layers of this model are not known"
    return Memory(words, plan, device_gib, verdict, is_warning)


def largest_batch(job: JobConfig, stats: DatasetStats) -> LargestBatch:
    """The micro-batch of the longest sequences; with datasets of before they were measured, of full ones."""
    assert job.train_batch_size_per_device is not None
    train = stats.train
    longest = None if job.padding == "max_length" else train.longest_sample
    num_tokens = longest or stats.context_length
    # Logits are computed at every position that some sequence of the batch trains.
    num_columns = num_tokens if train.most_trained is None else job.train_batch_size_per_device * train.most_trained
    return LargestBatch(
        num_sequences=job.train_batch_size_per_device,
        num_tokens=num_tokens,
        num_logit_columns=min(num_tokens, num_columns),
        gradient_checkpointing=job.gradient_checkpointing,
        attention=job.attention,
    )


def _trained_model(facts: ModelFacts, job: JobConfig, adds_in_fp32: bool) -> TrainedModel | None:
    size = 4 if job.precision == "fp32" else 2
    num_base = facts.num_parameters if facts.shape is None else facts.shape.num_parameters
    num_trained: int | None = num_base
    num_adapter = 0
    if job.lora_config is not None:
        counted = None if facts.shape is None else count_adapter_parameters(facts.shape, job.lora_config)
        num_trained, num_adapter = counted, counted or 0
    if num_base is None or num_trained is None:
        return None
    return TrainedModel(num_base + num_adapter, num_trained, size, has_fp32_gradients=size == 2 and adds_in_fp32)


def _device(job: JobConfig, device_memory_gib: float | None) -> tuple[str, float | None]:
    """(the device in words, its memory): as given, else by the accelerator that the job names."""
    if device_memory_gib is not None:
        return f"{device_memory_gib:g} GiB, as given", device_memory_gib
    name = find_accelerator([*(job.worker_resources or ()), *(job.trainer_resources or ())])
    memory = None if name is None else MEMORY_GIB.get(name)
    return f"{memory:g} GiB of {name}" if memory is not None else str(name), memory


def _verdict(plan: MemoryPlan, device: str, device_gib: float | None) -> tuple[str, bool]:
    total = f"{plan.total_bytes / GIB:.2f} GiB"
    if device_gib is None:
        ask = "give --device-memory-gib, or name the accelerator in worker_resources, such as accelerator_type:A10G"
        return f"whether {total} fit is not known; {ask}", False
    usable = f"{USABLE_SHARE:.0%} of {device}"
    if plan.fits(device_gib):
        return f"{total} fit into {usable}", False
    return (
        f"{total} do not fit into {usable}; lower train_batch_size_per_device (and raise gradient_accumulation_steps) "
        "or context_length, use lora_config, a higher ZeRO stage on more devices, or offload_optimizer",
        True,
    )

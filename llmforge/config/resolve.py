"""Defaults that depend on other things: a job and facts in, the same job with its gaps filled out.

It needs the cluster and the model's `config.json`; what needs the measured data is left to `sizing.py`. It is pure: the
same arguments give the same job. Choices a person may wonder about are logged with their reason. What the job says is
never changed; what cannot work on this cluster or model is a ConfigError.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmforge.config.accelerators import find_accelerator
from llmforge.config.deepspeed import highest_zero_stage, lowest_zero_stage, zero_stage_of
from llmforge.config.families import find_family, find_refused_family
from llmforge.config.finding import Finding, descend, path_text
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import UNKNOWN_MODEL, ModelSizes, trained_model
from llmforge.config.memory_plan import GIB
from llmforge.config.prompt_format import GenerationConfig
from llmforge.config.rules import without_reference_adapter
from llmforge.config.serving import serving_warnings
from llmforge.config.training import Adafactor, ClassifierConfig, DeepSpeedFile, PreferenceTuningConfig
from llmforge.config.zero import choose_zero_stage
from llmforge.errors import ConfigError, Problem

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFacts:
    """What is known before any data is read."""

    has_gpu: bool
    started_at: datetime
    model_context_length: int | None = None
    """`max_position_embeddings` of the model."""
    model: ModelSizes = UNKNOWN_MODEL


def resolve_job(job: JobConfig, facts: JobFacts) -> JobConfig:
    """The job with every default filled in that does not need the measured data.

    `read_deepspeed` comes first; a DeepSpeed section that still names a file is left alone. Raises ConfigError.
    """
    gpu = _uses_gpu(job, facts)
    precision = _precision(job, gpu)
    _check_facts(job, facts, precision)
    _check_family(job)
    run_name = job.run_name or default_run_name(job, facts.started_at)
    job = job.model_copy(
        update={
            "task": _task(job),
            "accelerator": "gpu" if gpu else "cpu",
            "precision": precision,
            "packing": job.padding is None if job.packing is None else job.packing,
            "padding": job.padding or (None if job.packing in (None, True) else "longest"),
            "learning_rate": job.learning_rate or _learning_rate(job),
            "train_batch_size_per_device": job.train_batch_size_per_device or _batch_size_of_deepspeed(job),
            "lora_config": _lora_config(job),
            "generation_config": _generation_config(job),
            "preference_tuning_config": _preference_tuning_config(job),
            "classifier_config": _classifier_config(job),
        }
    )
    for warning in () if job.lora_config is None else serving_warnings(job.lora_config):
        _LOG.warning(warning)
    _tell_trainer_resources(job)
    job = job.model_copy(update={"deepspeed": _deepspeed(job, facts)})
    return job.model_copy(update={"run_name": run_name})


def find_refusal(job: JobConfig) -> Finding | None:
    """Why no prompt format is offered for the model of a job that gives none; None where there is no such reason."""
    own_format = job.generation_config is not None and job.generation_config.prompt_format is not None
    refused = find_refused_family(job.model_id)
    if refused is None or own_format or job.earlier_runs:
        return None
    return Finding(
        ("model_id",),
        f"found {job.model_id}, for which no prompt format is offered: its chat template {refused.reason}; write the "
        "format to train and to serve with in generation_config.prompt_format (docs/prompt-formats.md)",
    )


_NOT_IN_DIGEST = {
    "run_name",
    "deepspeed",
    "max_failures",
    "stall_timeout_seconds",
    "storage_timeout_seconds",
    "resource_timeout_seconds",
    "evaluation",
}


def job_digest(job: JobConfig) -> str:
    """Eight hexadecimal digits that name a submitted job: they end the default names of its runs.

    What does not count: `run_name`, the DeepSpeed section, which may still stand in a file, and what changes nothing of
    the training itself.
    """
    text = job.model_dump_json(exclude=_NOT_IN_DIGEST)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_run_name(job: JobConfig, started_at: datetime) -> str:
    """The name of a run of a submitted job without one: made of what every file system and object store takes."""
    model = job.custom_model_tag or job.model_id.rstrip("/").split("/")[-1]
    name = f"{model[:64]}-{_task_of(job)}-{started_at:%Y%m%d-%H%M%S}-{job_digest(job)}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")


def _uses_gpu(job: JobConfig, facts: JobFacts) -> bool:
    if job.accelerator == "auto" and not facts.has_gpu:
        _LOG.info("accelerator: cpu, since the cluster has no GPU")
    return facts.has_gpu if job.accelerator == "auto" else job.accelerator == "gpu"


def _tell_trainer_resources(job: JobConfig) -> None:
    given = job.worker_resources or {}
    extra = {name: amount for name, amount in (job.trainer_resources or {}).items() if amount > given.get(name, 0.0)}
    if extra and job.max_devices > 1:
        listed = ", ".join(f"{name} {amount:g}" for name, amount in extra.items())
        why = "Ray Train gives all workers the same, and says only later which of them is the first"
        _LOG.info("trainer_resources: each of the %s workers asks for %s; %s", job.devices_text, listed, why)


def _precision(job: JobConfig, gpu: bool) -> str:
    if job.precision != "auto":
        return job.precision
    inline = _section(job)
    for precision in ("bf16", "fp16"):
        if descend(inline, (precision, "enabled"))[1] is True:
            _LOG.info("precision: %s, since the deepspeed section enables it", precision)
            return precision
    _LOG.info("precision: %s, the default on %s", *(("bf16", "GPUs") if gpu else ("fp32", "CPUs")))
    return "bf16" if gpu else "fp32"


def _section(job: JobConfig) -> dict[str, Any]:
    """The deepspeed section; empty where there is none, or a file that is not read yet."""
    return {} if job.deepspeed is None or isinstance(job.deepspeed, DeepSpeedFile) else job.deepspeed


def _check_facts(job: JobConfig, facts: JobFacts, precision: str) -> None:
    problems = []
    if job.accelerator == "gpu" and not facts.has_gpu:
        problems.append(Problem("found gpu, but the cluster has none; choose auto or cpu, or add a GPU", "accelerator"))
    if precision == "fp16" and (job.accelerator == "cpu" or not facts.has_gpu):
        problems.append(Problem("found fp16, allowed on CPUs: bf16, fp32 or auto", "precision"))
    problems += _stage_problems(job, precision)
    longest = facts.model_context_length
    too_long = longest is not None and job.context_length is not None and job.context_length > longest
    if too_long and job.embedding_scaling_technique == "none":
        found = f"found {job.context_length}, allowed is at most {longest}, the longest sequence of {job.model_id}"
        problems.append(Problem(found, "context_length"))
    if problems:
        raise ConfigError.from_problems(problems)


def _stage_problems(job: JobConfig, precision: str) -> list[Problem]:
    asked = zero_stage_of(_section(job))
    stage = max(asked, lowest_zero_stage(precision))
    if stage <= highest_zero_stage(job):
        return []
    if isinstance(job.optimizer, Adafactor):
        why = "the deepspeed section asks for" if asked else f"precision {precision} needs"
        found = f"found adafactor, but {why} ZeRO stage {stage}; allowed: stage 0 and precision fp32"
        reason = "from stage 1 on rows and columns of a matrix are lost, and results would depend on num_devices"
        return [Problem(f"{found} ({reason}); use adamw_8bit, or adamw with offload_optimizer", "optimizer.type")]
    found = "found 3, allowed with quantization in 8 bits: 0 to 2 (each device keeps all of its 8 bit weights)"
    return [Problem(f"{found}; use bits: 4, or a lower stage", "deepspeed.zero_optimization.stage")]


def _check_family(job: JobConfig) -> None:
    refusal = find_refusal(job)
    if refusal is not None:
        raise ConfigError(f"{path_text(refusal.path)}: {refusal.message}")


def _task(job: JobConfig) -> str:
    task = _task_of(job)
    if job.task is None and task == "instruction_tuning":
        _LOG.info("task: %s, only assistant turns carry loss (the closed original's default was causal_lm)", task)
    return task


def _task_of(job: JobConfig) -> str:
    if job.task is not None:
        return job.task
    if job.classifier_config is not None:
        return "classification"
    return "instruction_tuning" if job.preference_tuning_config is None else "preference_tuning"


def _preference_tuning_config(job: JobConfig) -> PreferenceTuningConfig | None:
    config = job.preference_tuning_config
    if config is None:
        return None
    simpo = config.loss == "simpo"
    update: dict[str, object] = {
        "beta": config.beta or (2.0 if simpo else 0.1),
        "gamma": 1.0 if simpo and config.gamma is None else config.gamma,
    }
    if config.needs_reference and config.reference == "auto":
        why = without_reference_adapter(job)
        if why is None and config.logprob_processor_scaling_config is not None:
            why = "logprob_processor_scaling_config gives it workers"
        update["reference"] = "adapter_off" if why is None else "precomputed"
        how = "the base model, with the adapter switched off" if why is None else f"computed beforehand, since {why}"
        _LOG.info("reference model: %s", how)
    return config.model_copy(update=update)


def _classifier_config(job: JobConfig) -> ClassifierConfig | None:
    config = job.classifier_config
    if config is None:
        return None
    if job.valid_path is None and job.dataset.valid_fraction is None:
        _LOG.info("classifier: there is no validation data to measure temperature and threshold on; both stay as given")
    if len(config.label_tokens) > 2:
        return config
    positive = config.positive_label or config.label_tokens[-1]
    if config.positive_label is None:
        _LOG.info("classifier_config.positive_label: %s, the last of two", positive)
    return config.model_copy(update={"positive_label": positive})


def _learning_rate(job: JobConfig) -> float:
    rate, method = (1e-4, "with") if job.method == "lora" else (1e-5, "without")
    _LOG.info("learning_rate: %g, the default %s lora_config", rate, method)
    return rate


def _lora_config(job: JobConfig) -> Any:
    if job.lora_config is None or job.lora_config.target_modules is not None or job.lora_config.target_parameters:
        return job.lora_config
    family = find_family(job.model_id)
    targets = family.lora_target_modules if family is not None else ()
    return job.lora_config.model_copy(update={"target_modules": targets or "all-linear"})


def _generation_config(job: JobConfig) -> GenerationConfig:
    """The job's, completed by the family's format; the family's stop tokens belong to its format."""
    config = job.generation_config or GenerationConfig()
    if job.classifier_config is not None and "max_tokens" not in config.model_fields_set:
        config = config.model_copy(update={"max_tokens": 1})  # a classifier answers with its label
    family = find_family(job.model_id)
    stops: tuple[str, ...] = ()
    if config.prompt_format is None and family is not None:
        config = config.model_copy(update={"prompt_format": family.prompt_format})
        stops = family.stopping_sequences
    return config if config.stopping_sequences is not None else config.model_copy(update={"stopping_sequences": stops})


def _deepspeed(job: JobConfig, facts: JobFacts) -> Any:
    if isinstance(job.deepspeed, DeepSpeedFile):
        return job.deepspeed
    lowest = lowest_zero_stage(job.precision)
    if job.deepspeed is not None and descend(job.deepspeed, ("zero_optimization", "stage"))[1] != "auto":
        asked = zero_stage_of(job.deepspeed)
        why = f"instead of 0, since {job.precision} needs it" if asked < lowest else "from the deepspeed section"
        _LOG.info("ZeRO stage %d: %s", max(asked, lowest), why)
        return job.deepspeed
    accelerator = find_accelerator(job.worker_resources, job.trainer_resources)
    memory_bytes = None if accelerator is None else accelerator.memory_gib * GIB
    stage, reason = choose_zero_stage(
        trained_model(job, facts.model), job.min_devices, memory_bytes, lowest=lowest, highest=highest_zero_stage(job)
    )
    _LOG.info("ZeRO stage %d: %s", stage, reason)
    given: Any = job.deepspeed or {}
    return given | {"zero_optimization": given.get("zero_optimization", {}) | {"stage": stage}}


def _batch_size_of_deepspeed(job: JobConfig) -> int | None:
    """What the deepspeed section says of the micro-batch; None where it leaves it open."""
    if isinstance(job.deepspeed, DeepSpeedFile):
        return None
    section: Any = job.deepspeed or {}
    micro_batch, batch = section.get("train_micro_batch_size_per_gpu"), section.get("train_batch_size")
    if isinstance(micro_batch, int):
        chosen = micro_batch
    elif isinstance(batch, int):
        chosen = batch // (job.gradient_accumulation_steps * job.max_devices)
    else:
        return None
    chosen = max(1, chosen)
    _LOG.info("train_batch_size_per_device: %d, from the deepspeed section", chosen)
    return chosen

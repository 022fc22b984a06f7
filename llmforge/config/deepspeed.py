"""The DeepSpeed section of a job: read from its file, its `auto` values filled in, contradictions with the job refused.

The values for `auto` are those of Hugging Face's integration (`transformers/integrations/deepspeed.py`). Pure but for
`read_deepspeed`, which reads the file that a job names; DeepSpeed itself is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from llmforge.config.batch_size import micro_batches_per_worker
from llmforge.config.finding import Finding, descend, path_text
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig
from llmforge.config.training import Adafactor, DeepSpeedFile
from llmforge.errors import ConfigError, Problem

_REFUSED = {
    "optimizer": "use the job's keys optimizer, learning_rate and max_grad_norm",
    "scheduler": "use the job's keys lr_scheduler_type and num_warmup_steps",
}
_JOB_KEYS: dict[KeyPath, str] = {
    ("train_micro_batch_size_per_gpu",): "train_batch_size_per_device",
    ("gradient_accumulation_steps",): "gradient_accumulation_steps",
    ("train_batch_size",): "train_batch_size_per_device x gradient_accumulation_steps x num_devices",
    ("gradient_clipping",): "max_grad_norm",
    ("bf16", "enabled"): "precision",
    ("fp16", "enabled"): "precision",
    ("zero_optimization", "stage"): "the ZeRO stage",
}
_BUCKETS: tuple[KeyPath, ...] = (
    ("zero_optimization", "reduce_bucket_size"),
    ("zero_optimization", "stage3_prefetch_bucket_size"),
    ("zero_optimization", "stage3_param_persistence_threshold"),
)


def deepspeed_config_of(job: JobConfig, hidden_size: int, num_workers: int | None = None) -> dict[str, Any]:
    """`build_deepspeed_config` with the numbers of a resolved job; `hidden_size` is that of its model.

    With fewer workers than the job's most, each takes more micro-batches. The numbers of the user's configuration are
    those of a job with all of its devices.
    """
    assert not isinstance(job.deepspeed, DeepSpeedFile)
    config = build_deepspeed_config(
        job.deepspeed,
        zero_stage=zero_stage_of(job.deepspeed or {}),
        micro_batch_size=job.train_batch_size_per_device,
        gradient_accumulation_steps=job.gradient_accumulation_steps,
        num_workers=job.max_devices,
        precision=job.precision,
        max_grad_norm=job.max_grad_norm,
        hidden_size=hidden_size,
    )
    micro_batch_size = job.train_batch_size_per_device
    if num_workers in (None, job.max_devices) or micro_batch_size is None:
        return config
    num_micro_batches = micro_batches_per_worker(config["train_batch_size"], micro_batch_size, num_workers)
    config["gradient_accumulation_steps"] = num_micro_batches
    config["train_batch_size"] = micro_batch_size * num_micro_batches * num_workers
    return config


def build_deepspeed_config(
    user: Mapping[str, Any] | None,
    *,
    zero_stage: int,
    micro_batch_size: int | None,
    gradient_accumulation_steps: int,
    num_workers: int,
    precision: str,
    max_grad_norm: float | None,
    hidden_size: int,
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`: the user's, completed with the job's numbers.

    `precision` is `bf16`, `fp16` or `fp32`; no limit on the gradient norm is DeepSpeed's 0; `micro_batch_size` is None
    where it is not chosen yet, then the configuration says nothing of batches. Raises ConfigError with
    every contradiction between the user's numbers and the job's, and every `auto` that has no meaning.
    """
    config: dict[str, Any] = deepcopy(dict(user or {}))
    problems = find_deepspeed_problems(config)
    if problems:
        raise ConfigError.from_problems(Problem(p.message, f"deepspeed.{path_text(p.path)}") for p in problems)
    sequences = None if micro_batch_size is None else micro_batch_size * gradient_accumulation_steps * num_workers
    known: dict[KeyPath, Any] = {
        ("train_micro_batch_size_per_gpu",): micro_batch_size,
        ("gradient_accumulation_steps",): gradient_accumulation_steps,
        ("train_batch_size",): sequences,
        ("gradient_clipping",): max_grad_norm or 0.0,
        ("bf16", "enabled"): precision == "bf16",
        ("fp16", "enabled"): precision == "fp16",
        ("zero_optimization", "stage"): zero_stage,
    }
    required = {path: value for path, value in known.items() if value is not None}
    contradictions = [_contradiction(config, path, value) for path, value in required.items()]
    if any(contradictions):
        raise ConfigError.from_problems(problem for problem in contradictions if problem)
    buckets = (hidden_size**2, int(0.9 * hidden_size**2), 10 * hidden_size)
    autos = {path: size for path, size in zip(_BUCKETS, buckets, strict=True) if descend(config, path)[1] == "auto"}
    for path, value in (required | autos | _low_precision(config, precision, zero_stage)).items():
        _set(config, path, value)
    return _quiet_defaults(config) | config


def _low_precision(config: dict[str, Any], precision: str, zero_stage: int) -> dict[KeyPath, Any]:
    """What keeps the gradient the same for every split of a global batch where weights are in 16 bits.

    Micro-batches are summed in fp32 under bf16. DeepSpeed cannot do that without ZeRO, so stage 0 becomes stage 1,
    which computes the same with less memory.
    """
    changed: dict[KeyPath, Any] = {}
    if precision == "bf16" and not descend(config, ("data_types", "grad_accum_dtype"))[0]:
        changed["data_types", "grad_accum_dtype"] = "fp32"
    if zero_stage < lowest_zero_stage(precision):
        changed["zero_optimization", "stage"] = lowest_zero_stage(precision)
    return changed


def lowest_zero_stage(precision: str) -> int:
    """The lowest ZeRO stage that DeepSpeed runs in this precision."""
    return 0 if precision == "fp32" else 1


def highest_zero_stage(job: JobConfig) -> int:
    """The highest ZeRO stage that a job can use.

    Above 0 Adafactor's matrices are no matrices any more. In stage 3 bitsandbytes keeps 8 bit weights whole on every
    device, so that nothing is saved.
    """
    if isinstance(job.optimizer, Adafactor):
        return 0
    return 2 if job.quantization is not None and job.quantization.bits == 8 else 3


def _quiet_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if descend(config, ("zero_optimization", "offload_optimizer"))[1]:
        defaults["zero_force_ds_cpu_optimizer"] = False  # the optimizer is torch's, also where its state is offloaded
    return defaults


def find_deepspeed_problems(config: Mapping[str, Any]) -> list[Finding]:
    """Sections that belong to the job, sections of the wrong type, and `auto` values that have no meaning here."""
    findings = [
        Finding((key,), f"found a DeepSpeed {key} section, which is not read; remove it and {instead}")
        for key, instead in _REFUSED.items()
        if key in config
    ]
    for key in ("zero_optimization", "bf16", "fp16"):
        if not isinstance(config.get(key, {}), dict):
            findings.append(Finding((key,), f"found {json.dumps(config[key])}, allowed is an object"))
    known = (*_JOB_KEYS, *_BUCKETS)
    allowed = ", ".join(path_text(path) for path in known)
    for path in _autos(config, ()):
        if path not in known and path[0] not in _REFUSED:
            findings.append(Finding(path, f"found auto, allowed is a value: auto can be filled in for {allowed}"))
    return findings


def zero_stage_of(config: Mapping[str, Any]) -> int:
    """The ZeRO stage that a configuration names; DeepSpeed's default is 0."""
    stage = descend(dict(config), ("zero_optimization", "stage"))[1]
    return stage if isinstance(stage, int) else 0


def read_deepspeed(job: JobConfig) -> JobConfig:
    """The job with the file that `deepspeed.config_path` names read into it. Raises ConfigError."""
    if not isinstance(job.deepspeed, DeepSpeedFile):
        return job
    return job.model_copy(update={"deepspeed": read_deepspeed_file(job.deepspeed.config_path)})


def read_deepspeed_file(config_path: str) -> dict[str, Any]:
    """The JSON object in a DeepSpeed file. Raises ConfigError, with the line where it is no JSON."""
    where = f"deepspeed.config_path: {config_path}"
    try:
        config = json.loads(Path(config_path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: found a byte that is not UTF-8 at offset {error.start}") from error
    except OSError as error:
        hint = "the path counts from the working directory"
        raise ConfigError(f"{where}: cannot be read: {error.strerror}; {hint}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: found JSON that is no object, allowed is a DeepSpeed configuration")
    return config


def _contradiction(config: Mapping[str, Any], path: KeyPath, required: Any) -> Problem | None:
    present, found = descend(dict(config), path)
    if not present or found == "auto" or found == required:
        return None
    wanted = f"{json.dumps(required)} ({_JOB_KEYS[path]})"
    message = f"found {json.dumps(found)}, but the job says {wanted}; write auto, or change one of them"
    return Problem(message, f"deepspeed.{path_text(path)}")


def _autos(node: Any, path: KeyPath) -> Iterator[KeyPath]:
    if node == "auto":
        yield path
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _autos(child, (*path, key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _autos(child, (*path, index))


def _set(config: dict[str, Any], path: KeyPath, value: Any) -> None:
    place: Any = config
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value

"""`llmforge validate`: a job file and overrides in, a summary or a ConfigError out.

`--schema-only` looks at the job alone; otherwise the files that it names are looked for as well. Neither imports torch,
Ray or transformers. Data are not read here: that is the data stage's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmforge.config.data import DataSource
from llmforge.config.deepspeed import find_deepspeed_problems, read_deepspeed_file
from llmforge.config.families import find_family
from llmforge.config.finding import Finding, path_text
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig, LoadedJob, parse_job, read_job_text
from llmforge.config.training import DeepSpeedFile
from llmforge.errors import ConfigError, StorageError
from llmforge.storage.uri import local_path


def run_validate(path: str, overrides: Sequence[str], schema_only: bool) -> str:
    """A summary of a job that is right. Raises ConfigError with every problem."""
    if schema_only:
        return describe_job(parse_job(read_job_text(path), path, overrides).job, path)
    return describe_job(load_checked_job(path, overrides), path)


def load_checked_job(path: str, overrides: Sequence[str] = ()) -> JobConfig:
    """As `load_job`, and the files that the job names are there. Raises ConfigError with every problem."""
    loaded: LoadedJob = parse_job(read_job_text(path), path, overrides)
    problems = loaded.locate(check_files(loaded.job))
    if problems:
        raise ConfigError.from_problems(problems)
    return loaded.job


def check_files(job: JobConfig) -> list[Finding]:
    """What is wrong with the files that a job names: data, model, initial weights, adapter, DeepSpeed file."""
    return [
        *_check_sources(("train_path",), job.train_path, job.train_sources),
        *_check_sources(("valid_path",), job.valid_path, job.valid_sources),
        *_check_model(job),
        *_check_adapter(job),
        *_check_deepspeed(job),
    ]


def describe_job(job: JobConfig, path: str) -> str:
    """A few lines that say what the job would do; what is measured later says so."""
    family = find_family(job.model_id)
    own_format = job.generation_config is not None and job.generation_config.prompt_format is not None
    format_name = "the job's own" if own_format or family is None else f"{family.name} (known for this model)"
    lora = job.lora_config
    length = job.context_length or "measured from the data"
    steps = job.max_steps or (f"{job.num_epochs} epochs" if job.num_epochs else "measured from the data")
    lines = [
        f"{path}: a valid job",
        f"  model          {job.model_id}",
        f"  prompt format  {format_name}",
        f"  method         {f'LoRA, r = {lora.r}, alpha = {lora.lora_alpha}' if lora else 'all weights'}",
        f"  train data     {', '.join(source.path for source in job.train_sources)}",
        f"  valid data     {', '.join(source.path for source in job.valid_sources) or _held_out(job)}",
        f"  context        {length}",
        f"  steps          {steps}",
        f"  devices        {job.num_devices} ({job.accelerator})",
        f"  output         {job.output_dir}",
    ]
    return "\n".join([*lines, *(f"  warning        {warning}" for warning in _warnings(job))])


def _held_out(job: JobConfig) -> str:
    share = job.dataset.valid_fraction
    return "none" if share is None else f"{share:.0%} of the train data"


def _warnings(job: JobConfig) -> Iterator[str]:
    own_format = job.generation_config and job.generation_config.prompt_format
    if own_format and own_format.parse_special_in_content:
        yield "parse_special_in_content: whoever writes a message can write control tokens; only for pre-rendered data"
    family = find_family(job.model_id)
    if family is not None and family.difference and not own_format:
        yield f"{family.name}: {family.difference}"


def _check_sources(key: KeyPath, given: object, sources: Sequence[DataSource]) -> Iterator[Finding]:
    for index, source in enumerate(sources):
        problem = _s3_problem(source.path) if source.path.startswith("s3://") else _file_problem(source.path)
        if problem:
            yield Finding((*key, index) if isinstance(given, tuple) else key, f"{source.path}: {problem}")


def _file_problem(uri: str) -> str | None:
    path = local_path(uri)
    if path.is_dir():
        return "found a folder, allowed is a file"
    if not path.is_file():
        return f"no such file{_where(uri)}"
    return "the file is empty" if path.stat().st_size == 0 else None


def _s3_problem(uri: str) -> str | None:
    from llmforge.storage.cache import fingerprint

    try:
        size_bytes = fingerprint(uri).size_bytes
    except StorageError as error:
        return str(error).removeprefix(f"{uri}: ")
    return "the object is empty" if size_bytes == 0 else None


def _check_model(job: JobConfig) -> Iterator[Finding]:
    folder = Path(job.model_id)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield Finding(("model_id",), f"{folder}: no config.json there, so it is no Hugging Face model folder")
        if not (folder / "tokenizer.json").is_file():
            yield Finding(("model_id",), f"{folder}: no tokenizer.json there, which is the model's fast tokenizer")
    elif not _is_hub_id(job.model_id):
        yield Finding(("model_id",), f"{job.model_id}: no such folder, and no Hugging Face id{_where(job.model_id)}")
    base = job.initial_base_model_ckpt_path
    if isinstance(base, str) and not any(local_path(base).glob("*.safetensors")):
        yield Finding(("initial_base_model_ckpt_path",), f"{base}: no folder with *.safetensors files{_where(base)}")


def _check_adapter(job: JobConfig) -> Iterator[Finding]:
    adapter = job.initial_adapter_model_ckpt_path
    if isinstance(adapter, str) and not (local_path(adapter) / "adapter_config.json").is_file():
        yield Finding(
            ("initial_adapter_model_ckpt_path",), f"{adapter}: no folder with an adapter_config.json{_where(adapter)}"
        )


def _check_deepspeed(job: JobConfig) -> Iterator[Finding]:
    if not isinstance(job.deepspeed, DeepSpeedFile):
        for finding in find_deepspeed_problems(job.deepspeed or {}):
            yield Finding(("deepspeed", *finding.path), finding.message)
        return
    key, name = ("deepspeed", "config_path"), job.deepspeed.config_path
    try:
        config = read_deepspeed_file(name)
    except ConfigError as error:
        yield Finding(key, str(error).removeprefix("deepspeed.config_path: "))
        return
    for finding in find_deepspeed_problems(config):
        yield Finding(key, f"{name}: {path_text(finding.path)}: {finding.message}")


def _where(uri: str) -> str:
    """A hint for a relative path."""
    return "" if uri.startswith(("/", "~", "file:")) else f" (looked for in {Path.cwd()})"


def _is_hub_id(model_id: str) -> bool:
    return not model_id.startswith((".", "/", "~")) and model_id.count("/") <= 1

"""`llmforge validate`: a job file and overrides in, a summary or a ConfigError out.

`--schema-only` looks at the job alone; otherwise the files that it names are looked for as well, and a local tokenizer
is asked for the prompt format of a model that is not known. Neither imports torch, Ray or transformers. Data are not
checked here: that is the data stage's part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmforge.cli.places import cache_folder
from llmforge.config.data import DatasetConfig, DataSource
from llmforge.config.deepspeed import find_deepspeed_problems, read_deepspeed_file
from llmforge.config.families import find_family, find_refused_family
from llmforge.config.finding import Finding, path_text
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig, LoadedJob, parse_job, read_job_text
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.resolve import find_refusal
from llmforge.config.training import DeepSpeedFile
from llmforge.dataset.file_names import ALLOWED, expand_local, find_kind
from llmforge.dataset.hub import check_load_kwargs, is_hub_dataset
from llmforge.errors import ConfigError, DataError, ModelError, StorageError
from llmforge.prompt.lints import find_lints
from llmforge.storage.uri import is_s3, local_path


def run_validate(path: str, overrides: Sequence[str], schema_only: bool) -> str:
    """A summary of a job that is right. Raises ConfigError with every problem."""
    loaded = parse_job(read_job_text(path), path, overrides)
    if schema_only:
        _refuse(loaded, _check_family(loaded.job))
        return describe_job(loaded.job, path)
    findings = check_files(loaded.job)
    special_tokens = imported = None
    try:
        special_tokens = _local_special_tokens(loaded.job)
        imported = _imported_format(loaded.job)
    except (ConfigError, ModelError) as error:
        findings.append(Finding(("model_id",), str(error).removeprefix("model_id: ")))
    _refuse(loaded, findings)
    return describe_job(loaded.job, path, imported, special_tokens)


def load_checked_job(path: str, overrides: Sequence[str] = (), *, with_weights: bool = True) -> JobConfig:
    """As `load_job`, and the files that the job names are there, or those without weights.

    Raises ConfigError with every problem.
    """
    loaded = parse_job(read_job_text(path), path, overrides)
    _refuse(loaded, check_files(loaded.job, with_weights=with_weights))
    return loaded.job


def check_files(job: JobConfig, *, with_weights: bool = True) -> list[Finding]:
    """What is wrong with the model and the files that a job names: data, initial weights, adapter, DeepSpeed file."""
    return [
        *_check_sources(("train_path",), job.train_path, job.train_sources, job.dataset),
        *_check_sources(("valid_path",), job.valid_path, job.valid_sources, job.dataset),
        *_check_load_kwargs(job),
        *_check_model(job),
        *_check_family(job),
        *(_check_weights(job) if with_weights else ()),
        *_check_deepspeed(job),
    ]


def describe_job(
    job: JobConfig,
    path: str,
    prompt_format: PromptFormat | None = None,
    special_tokens: frozenset[str] | None = None,
    sized: JobConfig | None = None,
) -> str:
    """A few lines that say what a job would do; what is measured later says so.

    `prompt_format` is that of the job once it is resolved, `special_tokens` are those of its tokenizer, `sized` is the
    job with its measured numbers; None where they are not known yet.
    """
    lora = job.lora_config
    length = (sized or job).context_length or "measured from the data"
    steps = (sized or job).max_steps or (f"{job.num_epochs} epochs" if job.num_epochs else "measured from the data")
    lines = [
        f"{path}: a valid job",
        f"  model          {job.model_id}",
        f"  prompt format  {format_origin(job, is_known=prompt_format is not None)}",
        f"  method         {f'LoRA, r = {lora.r}, alpha = {lora.lora_alpha}' if lora else 'all weights'}",
        f"  train data     {', '.join(source.path for source in job.train_sources)}",
        f"  valid data     {validation_origin(job)}",
        f"  context        {length}",
        f"  steps          {steps}",
        f"  devices        {job.num_devices} ({job.accelerator})",
        f"  output         {job.output_dir}",
    ]
    warnings = format_warnings(job, prompt_format, special_tokens)
    return "\n".join([*lines, *(f"  warning        {warning}" for warning in warnings)])


def format_origin(job: JobConfig, *, is_known: bool) -> str:
    """Where the prompt format of a submitted job comes from; `is_known`: also where only its tokenizer can say."""
    if _own_format(job) is not None:
        return "the job's own"
    family = find_family(job.model_id)
    if family is not None:
        return f"{family.name} (known for this model)"
    return f"of the tokenizer's chat template{'' if is_known else ', from which it is taken when the job starts'}"


def format_warnings(
    job: JobConfig, prompt_format: PromptFormat | None, special_tokens: frozenset[str] | None
) -> list[str]:
    """What a person should know about the prompt format of a submitted job; the arguments are those of
    `describe_job`.
    """
    family = None if _own_format(job) else find_family(job.model_id)
    used = prompt_format or _own_format(job) or (family and family.prompt_format)
    lints = find_lints(used, special_tokens) if used else []
    return [*lints, f"{family.name}: {family.difference}"] if family and family.difference else lints


def _own_format(job: JobConfig) -> PromptFormat | None:
    return None if job.generation_config is None else job.generation_config.prompt_format


def validation_origin(job: JobConfig) -> str:
    """Where the validation rows of a job come from."""
    if job.valid_sources:
        return ", ".join(source.path for source in job.valid_sources)
    share = job.dataset.valid_fraction
    return "none" if share is None else f"{share:.0%} of the train data"


def _refuse(loaded: LoadedJob, findings: Iterable[Finding]) -> None:
    problems = loaded.locate(findings)
    if problems:
        raise ConfigError.from_problems(problems)


def _check_family(job: JobConfig) -> Iterator[Finding]:
    refusal = find_refusal(job)
    if refusal is not None:
        yield refusal


def _imported_format(job: JobConfig) -> PromptFormat | None:
    """The format that the tokenizer gives to a job which has none and whose model is of no known family.

    None also where that shows later: the model is on the hub, or this is the light client. Raises ConfigError where the
    tokenizer gives none, and ModelError where its files are damaged.
    """
    folder = Path(job.model_id)
    is_known = _own_format(job) or find_family(job.model_id) or find_refused_family(job.model_id)
    if is_known or not (folder / "tokenizer.json").is_file():
        return None
    try:
        from llmforge.dataset.job_format import with_imported_format
        from llmforge.models.folder import read_tokenizer_template
    except ImportError:
        return None
    # Rows to be fetched first are for the start of the job; files that are not there are told elsewhere.
    sources = [
        source
        for source in job.train_sources
        if not is_s3(source.path)
        and not is_hub_dataset(source.path, job.dataset.load_kwargs)
        and not _source_problems(source.path)
    ]
    job = job.model_copy(update={"train_path": tuple(sources)})
    return with_imported_format(job, read_tokenizer_template(folder), cache_folder()).prompt_format


def _local_special_tokens(job: JobConfig) -> frozenset[str] | None:
    """The control tokens of the model's tokenizer, read by what the light client has; None for a model on the hub.

    Raises ModelError where the file is damaged.
    """
    path = Path(job.model_id) / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{path}: not JSON: {error}; cut short, or a pointer of Git LFS? Fetch the file again"
        ) from error
    if not isinstance(description, dict):
        raise ModelError(f"{path}: expected a JSON object, as the tokenizers library writes it; fetch the file again")
    return frozenset(token["content"] for token in description.get("added_tokens", ()) if token["special"])


def _check_sources(
    key: KeyPath, given: object, sources: Sequence[DataSource], dataset: DatasetConfig
) -> Iterator[Finding]:
    """Of Hugging Face datasets only the start of the job can say whether they are there."""
    for index, source in enumerate(sources):
        is_hub = is_hub_dataset(source.path, dataset.load_kwargs)
        for problem in () if is_hub else _source_problems(source.path):
            yield Finding((*key, index) if isinstance(given, tuple) else key, problem)


def _check_load_kwargs(job: JobConfig) -> Iterator[Finding]:
    key: KeyPath = ("dataset", "load_kwargs")
    given = job.dataset.load_kwargs
    sources = (*job.train_sources, *job.valid_sources)
    if given is not None and not any(is_hub_dataset(source.path, given) for source in sources):
        yield Finding(key, "no source is a Hugging Face dataset that they could be for; remove them")
    try:
        check_load_kwargs(given)
    except DataError as error:
        name, _, problem = str(error).partition(": ")
        yield Finding(tuple(name.split(".")), problem)


def _source_problems(uri: str) -> list[str]:
    """What is wrong with the files that a source names, each with its address."""
    try:
        files = _files(uri)
    except (DataError, StorageError) as error:
        return [str(error)]
    # Objects that were just listed are there, and may be many.
    found = [file for file in files if not is_s3(file) or file == uri]
    problems = ((file, _s3_problem(file) if is_s3(file) else _file_problem(file)) for file in found)
    return [f"{file}: {problem}" for file, problem in problems if problem]


def _files(uri: str) -> list[str]:
    if is_s3(uri):
        from llmforge.dataset.files import expand_uris

        return expand_uris([uri])
    return expand_local(uri)


def _file_problem(uri: str) -> str | None:
    path = local_path(uri)
    if not path.is_file():
        return f"no such file{_where(uri)}"
    if find_kind(uri) is None:
        return f"not the name of a data file; {ALLOWED}"
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


def _check_weights(job: JobConfig) -> Iterator[Finding]:
    base = job.initial_base_model_ckpt_path
    if isinstance(base, str) and not any(local_path(base).glob("*.safetensors")):
        yield Finding(("initial_base_model_ckpt_path",), f"{base}: no folder with *.safetensors files{_where(base)}")
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

"""Whether the files that a job names are there: data, model, initial weights, adapter, DeepSpeed file, prompts.

In: a job that is right in itself. Out: a finding for each thing that is not. Of Hugging Face datasets and of models on
the hub only the start of the job can say whether they are there. Imports neither torch, Ray nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from llmforge.cli.check_prompts import find_prompt_problems
from llmforge.config.data import DatasetConfig, DataSource
from llmforge.config.deepspeed import find_deepspeed_problems, read_deepspeed_file
from llmforge.config.families import find_family
from llmforge.config.finding import Finding, path_text
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.resolve import find_refusal
from llmforge.config.training import DeepSpeedFile
from llmforge.dataset.file_names import ALLOWED, expand_local, find_kind
from llmforge.dataset.hub import check_load_kwargs, is_hub_dataset
from llmforge.errors import ConfigError, DataError, StorageError
from llmforge.storage.uri import is_s3, local_path


def check_files(job: JobConfig, *, with_weights: bool = True) -> list[Finding]:
    """What is wrong with the model and the files that a job names: data, initial weights, adapter, DeepSpeed file."""
    return [
        *_check_sources(("train_path",), job.train_path, job.train_sources, job.dataset),
        *_check_sources(("valid_path",), job.valid_path, job.valid_sources, job.dataset),
        *_check_load_kwargs(job),
        *_check_model(job),
        *check_family(job),
        *(_check_weights(job) if with_weights else ()),
        *_check_deepspeed(job),
        *find_prompt_problems(job, known_format(job)),
    ]


def _check_sources(
    key: KeyPath, given: object, sources: Sequence[DataSource], dataset: DatasetConfig
) -> Iterator[Finding]:
    """Of Hugging Face datasets only the start of the job can say whether they are there."""
    for index, source in enumerate(sources):
        is_hub = is_hub_dataset(source.path, dataset.load_kwargs)
        for problem in () if is_hub else source_problems(source.path):
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


def source_problems(uri: str) -> list[str]:
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


def check_family(job: JobConfig) -> Iterator[Finding]:
    refusal = find_refusal(job)
    if refusal is not None:
        yield refusal


def _check_weights(job: JobConfig) -> Iterator[Finding]:
    needed = {
        "initial_base_model_ckpt_path": ("*.safetensors", "no folder with *.safetensors files"),
        "initial_adapter_model_ckpt_path": ("adapter_config.json", "no folder with an adapter_config.json"),
    }
    for key, (pattern, problem) in needed.items():
        folder = getattr(job, key)
        if not isinstance(folder, str) or key in job.earlier_runs:
            continue
        try:
            names = _names_in(folder)
        except StorageError as error:
            yield Finding((key,), str(error))
            continue
        if not any(fnmatch(name, pattern) for name in names):
            yield Finding((key,), f"{folder}: {problem}{_where(folder)}")


def _names_in(folder: str) -> set[str]:
    """Of the files that stand in a folder; none where it is none."""
    if is_s3(folder):
        from llmforge.storage.base import open_storage

        return {file.key for file in open_storage(folder).list()}
    path = local_path(folder)
    return {file.name for file in path.iterdir()} if path.is_dir() else set()


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
    return "" if uri.startswith(("/", "~", "file:", "s3:")) else f" (looked for in {Path.cwd()})"


def _is_hub_id(model_id: str) -> bool:
    return not model_id.startswith((".", "/", "~")) and model_id.count("/") <= 1


def known_format(job: JobConfig) -> PromptFormat | None:
    """Without a look at any file."""
    family = None if job.earlier_runs else find_family(job.model_id)
    return own_format(job) or (family.prompt_format if family is not None else None)


def own_format(job: JobConfig) -> PromptFormat | None:
    return None if job.generation_config is None else job.generation_config.prompt_format

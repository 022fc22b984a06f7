"""`llmforge validate`: a job file and overrides in, a summary or a ConfigError out.

`--schema-only` looks at the job alone; otherwise the files that it names are looked for as well, and a local tokenizer
is asked for the prompt format of a model that is not known. Neither imports torch, Ray or transformers. Data are not
checked here: that is the data stage's part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmforge.cli.check_files import check_family, check_files, known_format, own_format, source_problems
from llmforge.cli.check_labels import find_label_problems
from llmforge.cli.check_prompts import find_prompt_problems
from llmforge.cli.check_runs import SeenRuns, look_at_runs
from llmforge.cli.places import cache_folder
from llmforge.config.families import find_family, find_refused_family
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig, LoadedJob, parse_job, read_job_text
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.hub import is_hub_dataset
from llmforge.errors import ConfigError, ModelError
from llmforge.metrics.service_checks import missing_package
from llmforge.prompt.lints import find_lints
from llmforge.storage.uri import is_s3


def run_validate(path: str, overrides: Sequence[str], schema_only: bool) -> str:
    """A summary of a job that is right. Raises ConfigError with every problem."""
    loaded = parse_job(read_job_text(path), path, overrides)
    if schema_only:
        _refuse(loaded, check_family(loaded.job))
        return describe_job(loaded.job, path)
    runs = look_at_runs(loaded.job)
    findings = [*check_files(loaded.job), *runs.findings]
    special_tokens = imported = None
    try:
        special_tokens = _local_special_tokens(loaded.job)
        imported = own_format(runs.job) if loaded.job.earlier_runs else _imported_format(loaded.job)
    except (ConfigError, ModelError) as error:
        findings.append(Finding(("model_id",), str(error).removeprefix("model_id: ")))
    findings += find_label_problems(loaded.job, imported or known_format(loaded.job))
    if imported is not None:
        findings = list(dict.fromkeys([*findings, *find_prompt_problems(loaded.job, imported)]))
    _refuse(loaded, findings)
    return describe_job(loaded.job, path, imported, special_tokens, runs=runs)


def load_checked_job(path: str, overrides: Sequence[str] = (), *, with_weights: bool = True) -> JobConfig:
    """As `load_job`, and the files that the job names are there, or those without weights.

    Raises ConfigError with every problem.
    """
    loaded = parse_job(read_job_text(path), path, overrides)
    _refuse(loaded, check_files(loaded.job, with_weights=with_weights))
    return loaded.job


def describe_job(
    job: JobConfig,
    path: str,
    prompt_format: PromptFormat | None = None,
    special_tokens: frozenset[str] | None = None,
    sized: JobConfig | None = None,
    runs: SeenRuns | None = None,
) -> str:
    """A few lines that say what a job would do; what is measured later says so.

    `prompt_format` is that of the job once it is resolved, `special_tokens` are those of its tokenizer, `sized` is the
    job with its measured numbers, `runs` are those that it starts from; None where they are not known yet.
    """
    length = (sized or job).context_length or "measured from the data"
    steps = (sized or job).max_steps or (f"{job.num_epochs} epochs" if job.num_epochs else "measured from the data")
    lines = [
        f"{path}: a valid job",
        f"  model          {job.model_id}",
        f"  prompt format  {format_origin(job, is_known=prompt_format is not None)}",
        *_starts(job, runs),
        f"  method         {_method(job)}",
        f"  train data     {', '.join(source.path for source in job.train_sources)}",
        f"  valid data     {validation_origin(job)}",
        f"  context        {length}",
        f"  steps          {steps}",
        f"  devices        {job.devices_text} ({job.accelerator})",
        f"  output         {job.output_dir}",
    ]
    packages = [problem for problem in map(missing_package, job.loggers) if problem]
    unseen = () if runs is None else runs.warnings
    warnings = [*format_warnings(job, prompt_format, special_tokens), *packages, *unseen]
    return "\n".join([*lines, *(f"  warning        {warning}" for warning in warnings)])


def _starts(job: JobConfig, runs: SeenRuns | None) -> list[str]:
    named = [str(reference) for reference in job.earlier_runs.values()]
    found = named if runs is None else runs.starts or named
    return [f"  starts from    {', '.join(found)}"] if named else []


def _method(job: JobConfig) -> str:
    lora, pairs = job.lora_config, job.preference_tuning_config
    method = f"LoRA, r = {lora.r}, alpha = {lora.lora_alpha}" if lora else "all weights"
    if job.labels:
        return f"{method}, choosing between {', '.join(job.labels)}"
    if pairs is None:
        return method
    rows = "answers that are desirable or not" if job.is_rated else "pairs of a chosen and a rejected answer"
    return f"{method}, {pairs.loss} on {rows}"


def format_origin(job: JobConfig, *, is_known: bool) -> str:
    """Where the prompt format of a submitted job comes from; `is_known`: also where only its tokenizer can say."""
    if own_format(job) is not None:
        return "the job's own"
    if job.earlier_runs:
        return f"that of {list(job.earlier_runs.values())[-1]}"
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
    family = None if own_format(job) or job.earlier_runs else find_family(job.model_id)
    used = prompt_format or known_format(job)
    lints = find_lints(used, special_tokens) if used else []
    return [*lints, f"{family.name}: {family.difference}"] if family and family.difference else lints


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


def _imported_format(job: JobConfig) -> PromptFormat | None:
    """The format that the tokenizer gives to a job which has none and whose model is of no known family.

    None also where that shows later: the model is on the hub, or this is the light client. Raises ConfigError where the
    tokenizer gives none, and ModelError where its files are damaged.
    """
    folder = Path(job.model_id)
    is_known = own_format(job) or find_family(job.model_id) or find_refused_family(job.model_id)
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
        and not source_problems(source.path)
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

"""The runs that a job starts from: `run:NAME` in, the address of one very checkpoint out.

A run is looked for below the job's `output_dir`. What it was trained as stands in its own `resolved_job.yaml`: the job
takes over its prompt format and the base weights of its adapter, and is refused where it says otherwise. Needs neither
torch nor Ray, so a job can be checked wherever its `output_dir` can be read.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.checkpoint.names import FOLDER, OPTIMIZER_PREFIX, RESOLVED_JOB_FILE
from llmforge.checkpoint.run_end import read_end
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml
from llmforge.config.model import HubModel, QuantizationConfig, WeightsKey
from llmforge.config.prompt_format import GenerationConfig
from llmforge.config.run_reference import RunReference
from llmforge.errors import CheckpointError, ConfigError
from llmforge.storage.base import NotFoundError, join_uri, open_storage, read_bytes

logger = logging.getLogger(__name__)

_BASE: WeightsKey = "initial_base_model_ckpt_path"
_ADAPTER: WeightsKey = "initial_adapter_model_ckpt_path"


@dataclass(frozen=True)
class EarlierRun:
    """A run that a job names, and that trained what the job needs."""

    key: WeightsKey
    """Of the job that names it."""
    reference: RunReference
    store: CheckpointStore
    job: JobConfig
    """As it was resolved."""

    @property
    def place(self) -> str:
        """How messages begin."""
        return f"{self.key}: {self.reference}"


def find_earlier_runs(job: JobConfig) -> list[EarlierRun]:
    """The runs that a job names, base weights first. Raises `CheckpointError` and `ConfigError`."""
    return [find_earlier_run(job, key) for key in job.earlier_runs]


def find_earlier_run(job: JobConfig, key: WeightsKey) -> EarlierRun:
    """The run at one key. Raises `CheckpointError` where there is none, and `ConfigError` where it does not fit."""
    reference = job.earlier_runs[key]
    storage = open_storage(join_uri(job.output_dir, reference.run))
    try:
        text = read_bytes(storage, RESOLVED_JOB_FILE).decode()
    except NotFoundError:
        raise _no_run(key, reference, job.output_dir) from None
    earlier = job_from_yaml(text, join_uri(storage.root_uri, RESOLVED_JOB_FILE))
    run = EarlierRun(key, reference, CheckpointStore(storage), earlier)
    _check_kind(run)
    _check_model(run, job)
    return run


def with_format_of(job: JobConfig, runs: Sequence[EarlierRun]) -> JobConfig:
    """The job with the prompt format of the run whose weights it trains on.

    Raises `ConfigError` where the job gives another one.
    """
    if not runs:
        return job
    run = runs[-1]
    given = None if job.generation_config is None else job.generation_config.prompt_format
    if given is None:
        logger.info("prompt format: that of %s", run.reference)
    elif given != run.job.prompt_format:
        before, now = run.job.prompt_format.model_dump(), given.model_dump()
        differences = [
            f"{name} is {before[name]!r} there and {now[name]!r} here" for name in now if now[name] != before[name]
        ]
        raise ConfigError(
            f"{run.place}: was trained with another prompt format than generation_config.prompt_format: "
            f"{'; '.join(differences)}; allowed is the same, since the model answers as it was trained in one format "
            f"only. Remove prompt_format, and that of the run is taken; where the model is to learn another one, name "
            f"the folder of the checkpoint: {join_uri(run.store.storage.root_uri, FOLDER, 'CHECKPOINT')}"
        )
    return with_generation_of(job, run.job)


def with_generation_of(job: JobConfig, earlier: JobConfig) -> JobConfig:
    """The job with the prompt format and the stops of an earlier, resolved one, where it gives none itself."""
    given, theirs = job.generation_config or GenerationConfig(), earlier.generation_config
    assert theirs is not None
    stops = theirs.stopping_sequences if given.stopping_sequences is None else given.stopping_sequences
    update = {"prompt_format": given.prompt_format or theirs.prompt_format, "stopping_sequences": stops}
    return job.model_copy(update={"generation_config": given.model_copy(update=update)})


def with_checkpoints_of(job: JobConfig, runs: Sequence[EarlierRun]) -> JobConfig:
    """The job with the addresses of checkpoints, each seen to be whole, in place of the names of runs.

    Raises `CheckpointError`, and `ConfigError` where an adapter was trained over other base weights.
    """
    for run in runs:
        info = find_start(run)
        uri = join_uri(run.store.storage.root_uri, FOLDER, info.name)
        logger.info("%s: %s is %s", run.key, run.reference, uri)
        job = job.model_copy(update={run.key: uri})
        if run.key == _ADAPTER:
            job = job.model_copy(update={_BASE: _base_weights(run, job)})
            _tell_bits(run, job)
    return job


def find_start(run: EarlierRun) -> CheckpointInfo:
    """The checkpoint that is meant, of which all that a training starts from is there.

    best and latest mean one only once the run has ended. Raises `CheckpointError`.
    """
    end, complete = read_end(run.store.storage), run.store.list()
    if not complete or (end is None and not run.reference.is_fixed):
        raise _not_ready(run, complete)
    if end is not None and end.outcome == "stopped" and not run.reference.is_fixed:
        logger.warning("%s: was stopped at step %d, before its last step", run.place, end.step)
    try:
        info = run.store.resolve(run.reference.checkpoint)
        paths = [record.path for record in info.files if not record.path.startswith(OPTIMIZER_PREFIX)]
        run.store.check(info, paths)
    except CheckpointError as error:
        raise CheckpointError(f"{run.place}: {error}") from error
    return info


def _not_ready(run: EarlierRun, complete: Sequence[CheckpointInfo]) -> CheckpointError:
    reference = run.reference
    names = ", ".join(info.name for info in complete)
    if reference.is_fixed:
        return CheckpointError(
            f"{run.place}: found no complete checkpoint in {run.store.storage.root_uri}; allowed is a run that has "
            "one. Wait for its first save, or go on with it (--resume) where it was cut short"
        )
    there = f"and the checkpoints {names} so far" if names else "and no complete checkpoint"
    advice = f", or name a checkpoint that is there: run:{reference.run}@NAME" if names else ""
    return CheckpointError(
        f"{run.place}: found a run that has not come to its end, {there}; allowed is one that has, since nobody knows "
        f"yet which checkpoint is to be its {reference.checkpoint}. Wait for it, or go on with it (--resume) where it "
        f"was cut short{advice}"
    )


def _no_run(key: WeightsKey, reference: RunReference, output_dir: str) -> CheckpointError:
    storage = open_storage(output_dir)
    if storage.list(reference.run):
        return CheckpointError(
            f"{key}: {reference}: found a run in {storage.root_uri} that has not begun to train, so it has no "
            "checkpoint; allowed is one that has come to its end. Wait for it, or look why it did not start"
        )
    names = sorted({file.key.split("/")[0] for file in storage.list() if file.key.endswith(f"/{RESOLVED_JOB_FILE}")})
    near = difflib.get_close_matches(reference.run, names, n=1)
    meant = f" (did you mean run:{near[0]}?)" if near else ""
    return CheckpointError(
        f"{key}: {reference}: found no such run in {storage.root_uri}{meant}; runs there: {', '.join(names) or 'none'}."
        " A run is looked for in the output_dir of the job that names it: check run_name and output_dir of both"
    )


def _check_kind(run: EarlierRun) -> None:
    folder = run.store.storage.root_uri
    if run.key == _ADAPTER and run.job.method == "full":
        raise ConfigError(
            f"{run.place}: found a run that trained all weights, allowed here is one with lora_config: it has no "
            f"adapter to go on from. Name it in {_BASE}"
        )
    if run.key == _BASE and run.job.method == "lora":
        raise ConfigError(
            f"{run.place}: found a run that trained an adapter, allowed here is one that trained all weights: what is "
            "trained over a merged adapter needs the merged weights wherever it is served. To train the adapter on, "
            f"name the run in {_ADAPTER}; to train over both, make weights of them (llmforge export {folder} FOLDER) "
            "and name that folder here"
        )


def _check_model(run: EarlierRun, job: JobConfig) -> None:
    """A folder counts by its own name: each submission has a copy of its own, at another path."""
    here, there = job.model_id, run.job.model_id
    both_folders = Path(here).is_dir() and Path(there).is_absolute()
    if here != there and not (both_folders and Path(here).absolute().name == Path(there).name):
        raise ConfigError(
            f"{run.place}: was trained with model_id {there}, and this job gives {here}; allowed is the same, since "
            "architecture, tokenizer and base weights come from it. Write model_id as the run has it"
        )


def _base_weights(run: EarlierRun, job: JobConfig) -> str | HubModel | None:
    """What the adapter of a run belongs on."""
    here, there = job.initial_base_model_ckpt_path, run.job.initial_base_model_ckpt_path
    if here is None and there is not None:
        logger.info("%s: %s, as %s has it", _BASE, _weights_text(there), run.reference)
    elif here is not None and _weights_text(here) != _weights_text(there):
        raise ConfigError(
            f"{run.place}: its adapter was trained over {_weights_text(there)}, and {_BASE} gives "
            f"{_weights_text(here)}; allowed are the same weights, since an adapter is a change to them. Remove {_BASE}"
        )
    return there


def _tell_bits(run: EarlierRun, job: JobConfig) -> None:
    there, here = (_bits_text(one) for one in (run.job.quantization, job.quantization))
    if there != here:
        logger.warning(
            "quantization: the adapter of %s was trained over base weights in %s, here they are in %s; it has learnt"
            " to make up for their rounding, and begins a little off",
            run.reference,
            there,
            here,
        )


def _bits_text(quantization: QuantizationConfig | None) -> str:
    return "full precision" if quantization is None else f"{quantization.bits} bits ({quantization.type or 'default'})"


def _weights_text(weights: str | HubModel | None) -> str:
    if isinstance(weights, HubModel):
        return weights.repo_id if weights.revision is None else f"{weights.repo_id} at {weights.revision}"
    if weights is None:
        return "the weights of model_id"
    return str(Path(weights).absolute()) if Path(weights).is_dir() else weights

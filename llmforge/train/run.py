"""The driver of a run: from a checked job to a trained model, and what a person sees on the way.

In: a `JobConfig` as submitted. Out: the run's folder below `output_dir`, and a `RunResult`. It starts the data stage
and the Ray Train workers (`train/worker.py`), receives their events, and writes metrics and the report; it computes
nothing itself.
"""

import logging
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.deepspeed import deepspeed_config_of, read_deepspeed
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.config.resolve import JobFacts, job_digest, resolve_job
from llmforge.config.sizing import size_job
from llmforge.dataset.facts import data_facts
from llmforge.dataset.job_format import with_imported_format
from llmforge.dataset.pipeline import prepare
from llmforge.dataset.preview import preview_rows
from llmforge.dataset.tokenize import TokenizerText, special_tokens
from llmforge.errors import CheckpointError, ConfigError
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.models.folder import ModelFiles, model_folder, read_model_files
from llmforge.prompt.lints import find_lints
from llmforge.storage.base import Storage, check_writable, join_uri, open_storage, write_bytes
from llmforge.train.channel import Receiver
from llmforge.train.cluster import check_resources, cluster_facts, resources_per_worker, start_ray, wait_for_resources
from llmforge.train.entry import start_worker
from llmforge.train.failures import StopOnUserError, as_user_error
from llmforge.train.record import RunRecord
from llmforge.train.run_report import store_report
from llmforge.train.task import WorkerTask

logger = logging.getLogger(__name__)

NUM_REPORTED_EXAMPLES = 3


@dataclass(frozen=True)
class RunRequest:
    """What the command line hands over."""

    job: JobConfig
    submitted_text: str
    """The job file as it stands on disk, kept in the run's folder."""
    cache_folder: Path
    """On every node: copies of what lies in object stores, each verified."""
    resume: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run_uri: str
    best: CheckpointInfo
    latest: CheckpointInfo


def run_training(request: RunRequest, display: ProgressDisplay, timer: PhaseTimer) -> RunResult:
    """Run a job to its end. Raises `LlmforgeError` for what the user can solve, before any worker starts where
    possible.
    """
    display.phase("starting Ray")
    with timer.phase("start Ray"):
        start_ray(verbose=request.verbose)
    with timer.phase("read model files"):
        model = read_model_files(model_folder(request.job.model_id, with_weights=False))
    tokenizer = TokenizerText(model.tokenizer_json, model.eos_token)
    job, output = _resolve(request, model)
    for lint in find_lints(job.prompt_format, frozenset(special_tokens(model.tokenizer_json))):
        logger.warning("prompt format: %s", lint)
    run_uri = join_uri(job.output_dir, str(job.run_name))
    _check_run_folder(CheckpointStore(open_storage(run_uri)), run_uri, resume=request.resume)
    display.phase("preparing data")
    with timer.phase("prepare data"):
        prepared = prepare(
            job,
            tokenizer,
            output,
            request.cache_folder,
            model_context_length=model.facts.context_length,
            progress=display.data,
        )
    display.message(prepared.stats.describe())
    job = size_job(job, prepared.sizes(model.facts.context_length), model.facts.sizes)
    job_text = job_to_yaml(job, request.job)
    run_storage = open_storage(run_uri)
    write_bytes(run_storage, "job.yaml", request.submitted_text.encode())
    write_bytes(run_storage, "resolved_job.yaml", job_text.encode())
    display.phase("starting workers")
    record = RunRecord(run_storage, display, timer)
    try:
        with Receiver(record.handle) as receiver:
            task = WorkerTask(
                job_json=job.model_dump_json(),
                resolved_job_text=job_text,
                run_uri=run_uri,
                prepared=prepared,
                cache_folder=str(request.cache_folder),
                mailbox=receiver.mailbox,
                working_folder=str(Path.cwd()),
                sent_at=time.time(),
            )
            _fit(job, task)
    finally:
        record.close()
    checkpoints = CheckpointStore(run_storage)
    result = RunResult(run_uri, checkpoints.resolve("best"), checkpoints.resolve("latest"))
    rows = preview_rows(job, tokenizer, request.cache_folder)
    encoded = ((row.place, row.encoded.pieces) for row in rows if row.encoded is not None)
    preview = dict(islice(encoded, NUM_REPORTED_EXAMPLES))
    facts = data_facts(prepared.stats, join_uri(output.root_uri, prepared.prefix))
    store_report(run_storage, job, job_text, facts, record.records, result.best, preview)
    return result


def _resolve(request: RunRequest, model: ModelFiles) -> tuple[JobConfig, Storage]:
    """The resolved job, and its output storage, proven to be writable."""
    cluster = cluster_facts()
    job = with_imported_format(read_deepspeed(request.job), model.template, request.cache_folder)
    storage = open_storage(job.output_dir)
    if request.resume and job.run_name is None:
        job = job.model_copy(update={"run_name": _latest_run_of(job, storage)})
    facts = JobFacts(
        has_gpu=cluster.num_gpus > 0,
        started_at=datetime.now(),
        model_context_length=model.facts.context_length,
        model=model.facts.sizes,
    )
    job = _with_absolute_folders(resolve_job(job, facts))
    deepspeed_config_of(job, model.facts.hidden_size or 0)  # the workers' own, made here for its checks
    check_resources(job, cluster)
    check_writable(storage)
    return job, storage


def _with_absolute_folders(job: JobConfig) -> JobConfig:
    """Model folders by absolute path, so that whoever uses the run finds the base model from any folder."""
    keys = ("model_id", "initial_base_model_ckpt_path", "initial_adapter_model_ckpt_path")
    given = {key: getattr(job, key) for key in keys}
    folders = {key: path for key, path in given.items() if isinstance(path, str) and Path(path).is_dir()}
    return job.model_copy(update={key: str(Path(path).absolute()) for key, path in folders.items()})


def _latest_run_of(job: JobConfig, storage: Storage) -> str:
    """The newest run of this very job: its digest ends the names of its runs, and its time stands before."""
    names = {file.key.split("/")[0] for file in storage.list() if "/" in file.key}
    runs = sorted(name for name in names if name.endswith(f"-{job_digest(job)}"))
    if not runs:
        known = ", ".join(sorted(names - {"data"})) or "none"
        raise CheckpointError(
            f"--resume: {storage.root_uri} holds no run of this job; runs there: {known}. "
            "Name one with run_name=..., or start without --resume (a changed job is another job)"
        )
    return runs[-1]


def _check_run_folder(store: CheckpointStore, run_uri: str, *, resume: bool) -> None:
    checkpoints = store.list()
    if resume and not checkpoints:
        raise CheckpointError(f"--resume: {run_uri} has no complete checkpoint; start without --resume")
    if checkpoints and not resume:
        raise ConfigError(
            f"run_name: {run_uri} already holds {len(checkpoints)} checkpoints, the latest of step "
            f"{checkpoints[-1].step}; "
            "go on with --resume, or choose another run_name"
        )
    if resume:
        logger.info("resuming %s from step %d (%s)", run_uri, checkpoints[-1].step, checkpoints[-1].name)


def _fit(job: JobConfig, task: WorkerTask) -> None:
    """Run the workers. Ray gets a local folder of its own and sees no checkpoint: these are written by ours."""
    wait_for_resources(job)
    with tempfile.TemporaryDirectory(prefix="llmforge-ray-") as ray_folder:
        trainer = TorchTrainer(
            partial(start_worker, task),
            scaling_config=ScalingConfig(
                num_workers=job.num_devices,
                use_gpu=job.accelerator == "gpu",
                resources_per_worker=resources_per_worker(job),
            ),
            run_config=RunConfig(
                name=job.run_name,
                storage_path=ray_folder,
                failure_config=FailureConfig(max_failures=job.max_failures),
                callbacks=[StopOnUserError()],
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            user_error = as_user_error(error)
            if user_error is None:
                raise
            raise user_error from None

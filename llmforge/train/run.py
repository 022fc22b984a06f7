"""The driver of a run: from a checked job to a trained model, and what a person sees on the way.

In: a `JobConfig` as submitted. Out: the run's folder below `output_dir`, and a `RunResult`. It starts the data stage
and the Ray Train workers (`train/worker.py`), receives their events, and writes metrics and the report; it computes
nothing itself.
"""

import logging
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from llmforge.answers.evaluation_prompts import with_checked_prompts
from llmforge.answers.prompt_maker import PromptMaker
from llmforge.checkpoint.lineage import Lineage
from llmforge.checkpoint.names import RESOLVED_JOB_FILE
from llmforge.checkpoint.run_end import RunEnd, remove_end, write_end
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.deepspeed import deepspeed_config_of, read_deepspeed
from llmforge.config.demand import resources_per_worker
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.config.resolve import JobFacts, default_run_name, resolve_job
from llmforge.config.sizing import size_job
from llmforge.dataset.facts import data_facts
from llmforge.dataset.job_format import with_imported_format
from llmforge.dataset.labels import check_label_counts, tokenizer_with_labels
from llmforge.dataset.pipeline import prepare
from llmforge.dataset.prepared import PreparedDataset
from llmforge.dataset.preview import preview_rows
from llmforge.dataset.rated import warn_of_imbalance
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText, special_tokens
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.models.folder import ModelFiles, model_folder, read_model_files
from llmforge.prompt.lints import find_lints
from llmforge.storage.base import Storage, check_writable, join_uri, open_storage, write_bytes
from llmforge.storage.patience import open_patiently
from llmforge.train.channel import Receiver
from llmforge.train.cluster import check_resources, cluster_facts, start_ray
from llmforge.train.driver_record import take_over
from llmforge.train.entry import start_worker
from llmforge.train.failures import FailureHandling, as_user_error
from llmforge.train.interruption import run_interruptibly
from llmforge.train.placement import Demand, Placement
from llmforge.train.record import RunRecord
from llmforge.train.reference import wants_reference, with_reference
from llmforge.train.run_folder import check_continuity, check_run_folder, latest_run_of
from llmforge.train.run_report import store_report
from llmforge.train.services import RunServices, check_services
from llmforge.train.start import with_start
from llmforge.train.supervisor import Supervisor
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
    stopped_by: int | None = None
    """The signal that ended it before its last step; None where it went to its end."""


def run_training(request: RunRequest, display: ProgressDisplay, timer: PhaseTimer) -> RunResult:
    """Run a job to its end. Raises `LlmforgeError` for what the user can solve, before any worker starts where
    possible.
    """
    display.phase("starting Ray")
    with timer.phase("start Ray"):
        start_ray(verbose=request.verbose)
    with timer.phase("read model files"):
        model = read_model_files(model_folder(request.job.model_id, with_weights=False))
    job, model, output, lineage = _resolve(request, model)
    tokenizer = TokenizerText(model.tokenizer_json, model.eos_token)
    for lint in find_lints(job.prompt_format, frozenset(special_tokens(model.tokenizer_json))):
        logger.warning("prompt format: %s", lint)
    run_uri = join_uri(job.output_dir, str(job.run_name))
    run_storage = open_patiently(run_uri, job.storage_timeout_seconds)
    checkpoints = CheckpointStore(run_storage)
    check_run_folder(checkpoints, resume=request.resume)
    driver = take_over(run_storage)
    remove_end(run_storage)
    job, prepared = _prepare(job, model, output, request.cache_folder, display, timer)
    for checkpoint in checkpoints.list()[-1:]:
        check_continuity(checkpoint, job, prepared.prefix)
    job_text = job_to_yaml(job, request.job)
    write_bytes(run_storage, "job.yaml", request.submitted_text.encode())
    write_bytes(run_storage, RESOLVED_JOB_FILE, job_text.encode())
    display.phase("starting workers")
    services = RunServices(checkpoints)
    services.open(job, resume=request.resume, tell=display.message)
    record = RunRecord(run_storage, display, timer, services)
    try:
        with services, Receiver(record.handle) as receiver:
            task = WorkerTask(
                job_json=job.model_dump_json(),
                resolved_job_text=job_text,
                run_uri=run_uri,
                lineage=lineage,
                prepared=prepared,
                cache_folder=str(request.cache_folder),
                mailbox=receiver.mailbox,
                working_folder=str(Path.cwd()),
                driver=driver,
                sent_at=time.time(),
            )
            signal_number = _supervised_fit(job, task, run_storage, display, record)
    finally:
        record.close()
    best, latest = checkpoints.resolve("best"), checkpoints.resolve("latest")
    write_end(run_storage, RunEnd(outcome="stopped" if record.is_stopped else "finished", step=latest.step))
    if record.is_stopped:
        return RunResult(run_uri, best, latest, stopped_by=signal_number)
    result = RunResult(run_uri, best, latest)
    rows = preview_rows(job, tokenizer, request.cache_folder)
    encoded = ((place, one.pieces) for row in rows for place, one in row.conversations)
    preview = dict(islice(encoded, NUM_REPORTED_EXAMPLES))
    facts = data_facts(prepared.stats, join_uri(output.root_uri, prepared.prefix))
    store_report(run_storage, job, job_text, facts, record.records, result.best, preview, record.samples)
    return result


def _resolve(request: RunRequest, model: ModelFiles) -> tuple[JobConfig, ModelFiles, Storage, Lineage]:
    """The resolved job, its model with the tokenizer of the job, its output storage, proven to be writable, and what it
    starts from.
    """
    cluster, started_at = cluster_facts(), datetime.now()
    job = with_imported_format(read_deepspeed(request.job), model.template, request.cache_folder)
    storage = open_storage(job.output_dir)
    if job.run_name is None:  # by the job as it was submitted
        name = latest_run_of(job, storage) if request.resume else default_run_name(job, started_at)
        job = job.model_copy(update={"run_name": name})
    job, lineage = with_start(job, resume=request.resume)
    facts = JobFacts(
        has_gpu=cluster.num_gpus > 0 or (cluster.can_grow and request.job.accelerator == "gpu"),
        started_at=started_at,
        model_context_length=model.facts.context_length,
        model=model.facts.sizes,
    )
    job = _with_absolute_folders(resolve_job(job, facts))
    model = replace(model, tokenizer_json=tokenizer_with_labels(job, model.tokenizer_json))
    job = _with_evaluation_prompts(job, model, request.cache_folder)
    deepspeed_config_of(job, model.facts.hidden_size or 0)  # the workers' own, made here for its checks
    check_resources(job, cluster)
    check_writable(storage)
    check_services(job)
    return job, model, storage, lineage


def _prepare(
    job: JobConfig,
    model: ModelFiles,
    output: Storage,
    cache_folder: Path,
    display: ProgressDisplay,
    timer: PhaseTimer,
) -> tuple[JobConfig, PreparedDataset]:
    """The data of a job, and the job with the numbers that follow from them."""
    display.phase("preparing data")
    with timer.phase("prepare data"):
        prepared = prepare(
            job,
            TokenizerText(model.tokenizer_json, model.eos_token),
            output,
            cache_folder,
            model_context_length=model.facts.context_length,
            progress=display.data,
        )
    display.message(prepared.stats.describe())
    warn_of_imbalance(job, prepared.stats)
    if job.classifier_config is not None:
        check_label_counts(job.classifier_config, prepared.stats)
    if wants_reference(job):
        display.phase("asking the reference model")
        with timer.phase("ask the reference model"):
            prepared = with_reference(job, prepared, output, cache_folder, display.data)
    return size_job(job, prepared.sizes(model.facts.context_length), model.facts.sizes), prepared


def _with_evaluation_prompts(job: JobConfig, model: ModelFiles, cache_folder: Path) -> JobConfig:
    evaluation, generation = job.evaluation, job.generation_config
    if evaluation is None:
        return job
    assert generation is not None  # `resolve_job` has filled it in
    maker = PromptMaker(
        job.prompt_format, generation, SegmentTokenizer(model.tokenizer_json), model.facts.context_length
    )
    return with_checked_prompts(job, lambda prompt: maker.check_room(prompt, evaluation.max_tokens), cache_folder)


def _with_absolute_folders(job: JobConfig) -> JobConfig:
    """Model folders by absolute path, so that whoever uses the run finds the base model from any folder."""
    keys = ("model_id", "initial_base_model_ckpt_path", "initial_adapter_model_ckpt_path")
    given = {key: getattr(job, key) for key in keys}
    folders = {key: path for key, path in given.items() if isinstance(path, str) and Path(path).is_dir()}
    return job.model_copy(update={key: str(Path(path).absolute()) for key, path in folders.items()})


def _supervised_fit(
    job: JobConfig, task: WorkerTask, storage: Storage, display: ProgressDisplay, record: RunRecord
) -> int | None:
    """Run the workers, watch them, and listen to signals; returns the one that asked to stop, if any.

    Raises KeyboardInterrupt where nothing is running that could be saved.
    """
    supervisor = Supervisor(task.mailbox, storage, display.message, job.stall_timeout_seconds)

    def ask_to_stop() -> None:
        if record.is_waiting:
            raise KeyboardInterrupt
        display.message("stopping: the run is saved after the step under way; once more leaves without that")
        supervisor.ask_to_stop()

    with supervisor:
        return run_interruptibly(partial(_fit, job, task), ask_to_stop)


def _fit(job: JobConfig, task: WorkerTask) -> None:
    """Run the workers. Ray gets a local folder of its own and sees no checkpoint: these are written by ours."""
    demand = Demand(resources_per_worker(job), job.min_devices, job.max_devices, job.resource_timeout_seconds)
    with tempfile.TemporaryDirectory(prefix="llmforge-ray-") as ray_folder:
        trainer = TorchTrainer(
            partial(start_worker, task),
            scaling_config=ScalingConfig(
                num_workers=(job.min_devices, job.max_devices) if demand.is_elastic else job.max_devices,
                elastic_resize_monitor_interval_s=job.resize_interval_seconds,
                use_gpu=job.accelerator == "gpu",
                resources_per_worker=dict(demand.per_worker),
            ),
            run_config=RunConfig(
                name=job.run_name,
                storage_path=ray_folder,
                failure_config=FailureConfig(max_failures=job.max_failures),
                callbacks=[FailureHandling(task.mailbox), Placement(demand, task.mailbox)],
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            user_error = as_user_error(error)
            if user_error is None:
                raise
            raise user_error from None

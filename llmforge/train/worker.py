"""The training worker: composes model, engine, data, metrics and checkpoints, then runs the one loop.

Runs in every Ray Train worker, and again after a failure: it always goes on from the newest complete checkpoint of the
run. In: a `WorkerTask`. Out: checkpoints in the run's storage, events to the driver. Together with `train/run.py`,
which starts it, this is the only place that composes everything.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import deepspeed
import ray.train
import ray.train.torch
import transformers

from llmforge.checkpoint.names import driver_of
from llmforge.checkpoint.staging import Staging
from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.fitting import settings_that_fit
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import SequenceSizes
from llmforge.config.sizing import global_batch_size
from llmforge.dataset.shards import SampleReader, Split
from llmforge.metrics.loggers import METRICS_FILE, JsonlLogger, MessageHandler, MultiLogger
from llmforge.metrics.meters import StepMeter
from llmforge.metrics.samples import SAMPLES_FILE, SampleLog
from llmforge.models.folder import model_folder, read_model_facts
from llmforge.models.operations import peak_operations_per_second
from llmforge.storage.base import check_writable
from llmforge.storage.patience import open_patiently
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.channel import Event, Sender
from llmforge.train.checkpoints import CheckpointWriter, RunIdentity
from llmforge.train.classifier_files import ClassifierFiles
from llmforge.train.engine import TrainingEngine
from llmforge.train.evaluate import EvaluationResult, evaluate
from llmforge.train.loop import LoopParts, LoopPlan, train
from llmforge.train.memory import device_memory_bytes, shortage_explained
from llmforge.train.model import PreparedModel, build_tokenizer, prepare_model
from llmforge.train.optim import scheduled_learning_rate
from llmforge.train.prefetch import Prefetcher
from llmforge.train.pulse import Pulse
from llmforge.train.recovery import Restored, finish_or_remove_leftovers, from_rank_0, restore_newest
from llmforge.train.run_folder import check_continuity
from llmforge.train.samples import prepare_sampler
from llmforge.train.state import STATE_FILE, TrainerState, load_optimizer_state
from llmforge.train.task import WorkerTask

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class _Worker:
    """This rank: what it was told, and its two ways to the driver."""

    job: JobConfig
    task: WorkerTask
    group: int
    """Which start of the workers."""
    sender: Sender
    pulse: Pulse

    def begin(self, phase: str, *, is_watched: bool = True) -> None:
        """Tell the driver, and with it the person, what takes time now."""
        self.sender.send(Event("phase", text=phase))
        self.pulse.enter(phase, 0, is_watched=is_watched)


def train_worker(task: WorkerTask, start_seconds: Mapping[str, float]) -> None:
    """Entry of a Ray Train worker; `start_seconds` says how long what came before has taken."""
    started = time.perf_counter()
    _quiet_libraries()
    context = ray.train.get_context()
    sender = Sender(task.mailbox, context.get_world_rank())
    _tell_warnings(sender)
    group = from_rank_0(lambda: int(ray.get(task.mailbox.begin_group.remote())))
    pulse = Pulse(task.mailbox, group, context.get_world_rank(), context.get_world_size())
    with closing(pulse):
        worker = _Worker(JobConfig.model_validate_json(task.job_json), task, group, sender, pulse)

        def tell_ready() -> None:
            ready_seconds = {"worker: model, engine and data": time.perf_counter() - started}
            for text, seconds in {**start_seconds, **ready_seconds}.items():
                sender.send(Event("timing", text=text, metrics={"seconds": seconds}))

        _train(worker, tell_ready)
    sender.close()


def _train(worker: _Worker, tell_ready: Callable[[], None]) -> None:
    job, task, sender = worker.job, worker.task, worker.sender
    worker.begin("loading the model", is_watched=False)
    storage = open_patiently(task.run_uri, job.storage_timeout_seconds)
    check_writable(storage)
    store, staging = CheckpointStore(storage), Staging.of_run(Path(task.cache_folder), task.run_uri)
    restored = _recover(worker, store, staging)
    model = prepare_model(job, None if restored is None else restored.folder, Path(task.cache_folder))
    engine, layout = model.engine, model.layout
    worker.pulse.enter("starting the engine", 0)
    batches = _training_batches(job, task, engine, layout)
    _rehearse(job, engine, batches)
    state = _restored_state(engine, restored)
    plan = _plan(job, batches.steps_per_epoch)
    with TemporaryDirectory(prefix="llmforge-worker-") as folder, ExitStack() as closed_at_the_end:
        metrics_file, samples_file = Path(folder, METRICS_FILE), Path(folder, SAMPLES_FILE)
        labels = ClassifierFiles(Path(folder))
        record_files = [metrics_file, samples_file, *labels.paths]
        if restored is not None:
            for file in record_files:
                restored.copy_to(file)
        if model.classifier is not None:
            labels.begin(model.classifier)
        curves = closed_at_the_end.enter_context(closing(JsonlLogger(metrics_file, resume_from_step=state.step)))
        answers = SampleLog(samples_file, resume_from_step=state.step)
        writer = CheckpointWriter(
            store=store,
            staging=staging,
            engine=engine,
            tokenizer=build_tokenizer(job),
            identity=RunIdentity(
                task.driver.driver_id,
                worker.group,
                task.resolved_job_text,
                task.prepared.prefix,
                batches.sequences_per_step,
                task.lineage,
            ),
            record_files=record_files,
            num_to_keep=job.num_checkpoints_to_keep,
            supervision=worker.pulse,
            on_commit=lambda info: sender.send(Event("checkpoint", step=info.step, text=info.name)),
            resumed_from=() if restored is None else (restored.info.name,),
        )
        closed_at_the_end.enter_context(closing(writer))
        writer.check_space(ray.train.get_context().get_local_world_size())
        if restored is not None:
            restored.discard_copy()
        parts = LoopParts(
            engine=engine,
            batches=closed_at_the_end.enter_context(Prefetcher(batches, pin_memory=engine.device.type == "cuda")),
            learning_rate=_learning_rate(job),
            evaluate=_evaluation(worker, model, labels),
            checkpoints=writer,
            supervision=worker.pulse,
            logger=MultiLogger([sender, curves]),
            meter=StepMeter(engine.num_workers, peak_operations_per_second(engine.device, job.precision)),
            operations=model.operations,
            answer_prompts=_answering(worker, model, answers),
        )
        tell_ready()
        name = "" if restored is None else restored.info.name
        sender.send(Event("started", step=state.step, text=name, metrics={"max_steps": plan.max_steps}))
        train(parts, state, plan)
    if not plan.is_finished(state):
        sender.send(Event("stopped", step=state.step))


def _quiet_libraries() -> None:
    """The driver draws the one display of a run; libraries speak up here only when something is wrong."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    deepspeed.utils.logger.setLevel(logging.ERROR)


def _tell_warnings(sender: Sender) -> None:
    """Rank 0 speaks for all: what it warns of reaches the person who started the run."""
    logger = logging.getLogger("llmforge")
    logger.handlers = [MessageHandler(lambda text: sender.send(Event("message", text=text)))]
    logger.setLevel(logging.INFO)


def _recover(worker: _Worker, store: CheckpointStore, staging: Staging) -> Restored | None:
    """The checkpoint to go on from, after what an earlier start has left is dealt with."""
    driver = worker.task.driver

    def is_dead(attempt: str) -> bool:
        return driver.is_previous_gone or driver_of(attempt) == driver.driver_id

    finish_or_remove_leftovers(store, staging, is_dead, worker.job.num_checkpoints_to_keep)
    restored = restore_newest(store, staging.root.with_name(f"{staging.root.name}-restored"))
    if restored is not None:
        check_continuity(restored.info, worker.job, worker.task.prepared.prefix)
    return restored


def _rehearse(job: JobConfig, engine: TrainingEngine, batches: TrainingBatches) -> None:
    """Compute the largest micro-batch of the run now: memory that does not suffice is missed at once, and not in the
    middle of an epoch.
    """
    device_bytes = device_memory_bytes(engine.device, ray.train.get_context().get_local_world_size())
    batch = batches.largest()
    sizes = SequenceSizes(batches.longest_tokens, batches.most_trained_tokens)
    model = read_model_facts(model_folder(job.model_id, with_weights=False)).sizes
    what = f"the largest micro-batch of the run, {batch.num_positions:,} tokens"
    with shortage_explained(what, device_bytes, partial(settings_that_fit, job, model, sizes, device_bytes)):
        engine.rehearse(batch)


def _restored_state(engine: TrainingEngine, restored: Restored | None) -> TrainerState:
    """Bring the engine to where the checkpoint was taken; its local copy is not needed afterwards."""
    if restored is None:
        return TrainerState()
    state = TrainerState.model_validate_json((restored.folder / STATE_FILE).read_text())
    engine.restore_optimizer_state(load_optimizer_state(restored.folder, state))
    return state


def _training_batches(job: JobConfig, task: WorkerTask, engine: TrainingEngine, layout: Layout) -> TrainingBatches:
    return TrainingBatches(
        _open(job, task, "train"),
        micro_batch_size=_required(job.train_batch_size_per_device),
        sequences_per_step=global_batch_size(job),
        rank=engine.rank,
        num_workers=engine.num_workers,
        seed=job.seed,
        shuffle=job.dataset.shuffle,
        layout=layout,
    )


def _evaluation_batches(job: JobConfig, task: WorkerTask, engine: TrainingEngine, layout: Layout) -> TrainingBatches:
    return TrainingBatches(
        _open(job, task, "valid"),
        micro_batch_size=job.eval_batch_size_per_device,
        sequences_per_step=job.eval_batch_size_per_device * engine.num_workers,
        rank=engine.rank,
        num_workers=engine.num_workers,
        layout=layout,
    )


def _open(job: JobConfig, task: WorkerTask, split: Split) -> SampleReader:
    return task.prepared.open(
        split, open_patiently(job.output_dir, job.storage_timeout_seconds), Path(task.cache_folder)
    )


def _evaluation(worker: _Worker, model: PreparedModel, files: ClassifierFiles) -> Callable[[], EvaluationResult] | None:
    job, task = worker.job, worker.task
    if task.prepared.stats.valid is None:
        return None
    batches = _evaluation_batches(job, task, model.engine, model.layout)
    if model.classifier is None:
        return partial(evaluate, model.engine, batches, worker.pulse.advance)
    evaluate_classifier = import_module("llmforge.train.label_evaluation").evaluate_classifier  # imports scikit-learn
    start = model.classifier, job.classifier_config
    return partial(evaluate_classifier, model.engine, batches, *start, files, worker.pulse.advance)


def _answering(worker: _Worker, model: PreparedModel, log: SampleLog) -> Callable[[int], None] | None:
    sampler = prepare_sampler(worker.job, model, worker.pulse.advance)
    if sampler is None:
        return None

    def answer_prompts(step: int) -> None:
        samples = sampler(step)
        log.log(samples)
        worker.sender.send(Event("samples", step=step, samples=samples))

    return answer_prompts


def _plan(job: JobConfig, steps_per_epoch: int) -> LoopPlan:
    frequency = job.checkpoint_and_evaluation_frequency
    return LoopPlan(
        max_steps=_required(job.max_steps),
        steps_per_epoch=steps_per_epoch,
        evaluation_interval_steps=frequency.frequency * (steps_per_epoch if frequency.unit == "epochs" else 1),
        eval_first=job.eval_first,
        early_stopping=job.early_stopping,
        seed=job.seed,
        best_by=job.best_by,
    )


def _learning_rate(job: JobConfig) -> Callable[[int], float]:
    return partial(
        scheduled_learning_rate,
        peak=_required(job.learning_rate),
        schedule=job.lr_scheduler_type,
        num_warmup_steps=job.num_warmup_steps,
        max_steps=_required(job.max_steps),
    )


def _required(value: _Value | None) -> _Value:
    """A value that `resolve_job` and `size_job` have filled in."""
    assert value is not None
    return value

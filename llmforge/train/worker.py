"""The training worker: composes model, engine, data, metrics and checkpoints, then runs the one loop.

Runs in every Ray Train worker, and again after a failure: it always goes on from the newest complete checkpoint of the
run. In: a `WorkerTask`. Out: checkpoints in the run's storage, events to the driver. Together with `train/run.py`,
which starts it, this is the only place that composes everything.
"""

import logging
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import deepspeed
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import transformers
from transformers import PreTrainedModel

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.job import JobConfig
from llmforge.dataset.shards import SampleReader, Split
from llmforge.dataset.tokenize import special_tokens
from llmforge.models.folder import model_folder, read_tokenizer_json
from llmforge.models.load import Attention, Precision, add_adapter, load_adapter, load_base_model, load_tokenizer
from llmforge.models.packing import check_examples_stay_apart
from llmforge.prompt.chat_template import chat_template
from llmforge.storage.base import open_storage
from llmforge.train.batches import TrainingBatches
from llmforge.train.channel import Event, Sender
from llmforge.train.checkpoints import CheckpointWriter
from llmforge.train.engine import TrainingEngine
from llmforge.train.evaluate import EvaluationResult, evaluate
from llmforge.train.loop import LoopParts, LoopPlan, train
from llmforge.train.losses import next_token_loss
from llmforge.train.optim import build_optimizer, scheduled_learning_rate
from llmforge.train.state import STATE_FILE, TrainerState, load_optimizer_state
from llmforge.train.task import WorkerTask

_Value = TypeVar("_Value")


def train_worker(task: WorkerTask, start_seconds: Mapping[str, float]) -> None:
    """Entry of a Ray Train worker; `start_seconds` says how long what came before has taken."""
    started = time.perf_counter()
    _quiet_libraries()
    job = JobConfig.model_validate_json(task.job_json)
    context = ray.train.get_context()
    sender = Sender(task.mailbox, context.get_world_rank())
    sender.send(Event("phase", text="loading the model"))
    checkpoint = _newest_checkpoint(task)
    restored = None
    if checkpoint is not None:
        store = CheckpointStore(open_storage(task.run_uri))
        restored = store.local_folder(checkpoint, Path(task.cache_folder) / "checkpoints" / checkpoint.name)
    engine = _build_engine(job, restored)
    state = TrainerState()
    if restored is not None:
        state = TrainerState.model_validate_json((restored / STATE_FILE).read_text())
        engine.restore_optimizer_state(load_optimizer_state(restored, state))
    batches = _training_batches(job, task, engine)
    plan = _plan(job, batches.steps_per_epoch)
    parts = LoopParts(
        engine=engine,
        batches=batches,
        loss_function=next_token_loss,
        learning_rate=_learning_rate(job),
        evaluate=_evaluation(job, task, engine),
        save=_saving(job, task, engine, sender),
        logger=sender,
        peak_memory_bytes=partial(_peak_memory_bytes, engine.device),
    )
    ready_seconds = {"worker: model, engine and data": time.perf_counter() - started}
    for text, seconds in {**start_seconds, **ready_seconds}.items():
        sender.send(Event("timing", text=text, metrics={"seconds": seconds}))
    sender.send(Event("started", step=state.step, metrics={"max_steps": plan.max_steps}))
    train(parts, state, plan)
    sender.close()


def _quiet_libraries() -> None:
    """The driver draws the one display of a run; libraries speak up here only when something is wrong."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    deepspeed.utils.logger.setLevel(logging.ERROR)


def _newest_checkpoint(task: WorkerTask) -> CheckpointInfo | None:
    """The checkpoint to go on from; rank 0 looks, so that all ranks take the same."""
    found: list[CheckpointInfo | None] = [None]
    if dist.get_rank() == 0:
        checkpoints = CheckpointStore(open_storage(task.run_uri)).list()
        found = [checkpoints[-1] if checkpoints else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _build_engine(job: JobConfig, restored: Path | None) -> TrainingEngine:
    device = ray.train.torch.get_device()
    torch.manual_seed(job.seed)  # a fresh adapter must start equal on all ranks
    model = build_model(job, restored).to(device)
    if job.packing:
        check_examples_stay_apart(model)
    if job.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(model.parameters(), job.optimizer, _required(job.learning_rate))
    deepspeed_config = deepspeed_config_of(job, model.config.get_text_config().hidden_size)
    return TrainingEngine(model, optimizer, deepspeed_config, device)


def build_model(job: JobConfig, restored: Path | None) -> PreTrainedModel:
    """The model to train: from a checkpoint of this run, or from where the job says that it starts."""
    precision, attention = cast(Precision, job.precision), cast(Attention, job.attention)
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    weights = architecture
    if job.initial_base_model_ckpt_path is not None:
        weights = model_folder(job.initial_base_model_ckpt_path, with_weights=True)
    if job.lora_config is None:
        return load_base_model(architecture, restored or weights, precision=precision, attention=attention)
    base = load_base_model(architecture, weights, precision=precision, attention=attention)
    if restored is not None:
        adapted = load_adapter(base, restored, is_trainable=True)
    elif job.initial_adapter_model_ckpt_path is not None:
        adapted = load_adapter(
            base, model_folder(job.initial_adapter_model_ckpt_path, with_weights=True), is_trainable=True
        )
    else:
        adapted = add_adapter(base, job.lora_config, str(weights))
    return cast(PreTrainedModel, adapted)


def _training_batches(job: JobConfig, task: WorkerTask, engine: TrainingEngine) -> TrainingBatches:
    return TrainingBatches(
        _open(job, task, "train"),
        micro_batch_size=_required(job.train_batch_size_per_device),
        num_micro_batches=job.gradient_accumulation_steps,
        rank=engine.rank,
        num_workers=engine.num_workers,
        seed=job.seed,
        shuffle=job.dataset.shuffle,
        pad_to=job.context_length if job.padding == "max_length" else None,
    )


def _evaluation_batches(job: JobConfig, task: WorkerTask, engine: TrainingEngine) -> TrainingBatches:
    return TrainingBatches(
        _open(job, task, "valid"),
        micro_batch_size=job.eval_batch_size_per_device,
        num_micro_batches=1,
        rank=engine.rank,
        num_workers=engine.num_workers,
    )


def _open(job: JobConfig, task: WorkerTask, split: Split) -> SampleReader:
    return task.prepared.open(split, open_storage(job.output_dir), Path(task.cache_folder))


def _evaluation(job: JobConfig, task: WorkerTask, engine: TrainingEngine) -> Callable[[], EvaluationResult] | None:
    if task.prepared.stats.valid is None:
        return None
    return partial(evaluate, engine, _evaluation_batches(job, task, engine), next_token_loss)


def _saving(job: JobConfig, task: WorkerTask, engine: TrainingEngine, sender: Sender) -> Callable[[TrainerState], None]:
    folder = model_folder(job.model_id, with_weights=False)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = chat_template(job.prompt_format, frozenset(special_tokens(read_tokenizer_json(folder))))
    writer = CheckpointWriter(
        CheckpointStore(open_storage(task.run_uri)),
        engine,
        tokenizer,
        task.resolved_job_text,
        job.num_checkpoints_to_keep,
    )

    def save(state: TrainerState) -> None:
        info = writer.save(state)
        if info is not None:
            sender.send(Event("checkpoint", step=state.step, text=info.name))

    return save


def _plan(job: JobConfig, steps_per_epoch: int) -> LoopPlan:
    frequency = job.checkpoint_and_evaluation_frequency
    return LoopPlan(
        max_steps=_required(job.max_steps),
        steps_per_epoch=steps_per_epoch,
        evaluation_interval_steps=frequency.frequency * (steps_per_epoch if frequency.unit == "epochs" else 1),
        eval_first=job.eval_first,
        early_stopping=job.early_stopping,
        seed=job.seed,
    )


def _learning_rate(job: JobConfig) -> Callable[[int], float]:
    return partial(
        scheduled_learning_rate,
        peak=_required(job.learning_rate),
        schedule=job.lr_scheduler_type,
        num_warmup_steps=job.num_warmup_steps,
        max_steps=_required(job.max_steps),
    )


def _peak_memory_bytes(device: torch.device) -> int:
    """Of the device where it has memory of its own, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _required(value: _Value | None) -> _Value:
    """A value that `resolve_job` and `size_job` have filled in."""
    assert value is not None
    return value

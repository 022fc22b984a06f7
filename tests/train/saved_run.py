"""A whole training with its checkpoints in real ranks, without Ray: recovery, engine, loop, saves in the background.

It stands for one worker group of a run and may be killed anywhere. What each rank was told to do it also writes to a
journal, line by line, for whoever kills it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llmforge.checkpoint.names import driver_of
from llmforge.checkpoint.staging import Staging
from llmforge.checkpoint.store import CheckpointStore
from llmforge.dataset.shards import SampleReader
from llmforge.metrics.loggers import METRICS_FILE, JsonlLogger
from llmforge.metrics.meters import StepMeter
from llmforge.models.operations import count_operations
from llmforge.storage.patience import open_patiently
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.checkpoints import CheckpointWriter, RunIdentity
from llmforge.train.evaluate import evaluate
from llmforge.train.loop import LoopParts, LoopPlan, train
from llmforge.train.recovery import finish_or_remove_leftovers, restore_newest
from llmforge.train.requests import Request
from llmforge.train.state import STATE_FILE, TrainerState, load_optimizer_state
from tests.train.ranks import GLOBAL_BATCH, SEED, Case, build_engine, load_weights

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class SavedRun:
    """One run, and how often it saves."""

    run_uri: str
    samples: Path
    """Written by `write_random_samples`."""
    cache_folder: Path
    case: Case
    max_steps: int
    steps_per_save: int
    num_to_keep: int = 2
    driver_id: str = "0a1b2c"
    group: int = 1


@dataclass
class Watch:
    """Writes the journal of one rank. Nothing is asked of the run."""

    journal: Path

    @property
    def request(self) -> Request:
        return Request()

    def enter(self, phase: str, step: int, *, is_watched: bool = True) -> None:
        self.write(f"{phase} {step}")

    def write(self, line: str) -> None:
        """One line, at once."""
        with self.journal.open("a") as file:
            file.write(f"{line}\n")


def train_rank(
    run: SavedRun, rank: int, port: int, journal: Path, on_step: Callable[[int], None] | None = None
) -> None:
    """One rank of the run, from the newest checkpoint to the last step. `port`: for the ranks to meet."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(run.case.num_workers)}
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=run.case.num_workers)
    watch = Watch(journal)
    store = CheckpointStore(open_patiently(run.run_uri, PATIENCE_SECONDS))
    staging = Staging.of_run(run.cache_folder, run.run_uri)
    adopted = finish_or_remove_leftovers(store, staging, lambda word: driver_of(word) == run.driver_id, run.num_to_keep)
    if adopted is not None:
        watch.write(f"adopted {adopted}")
    restored = restore_newest(store, run.cache_folder / "restored")
    state = TrainerState()
    engine = build_engine(run.case, None if restored is None else load_weights(restored.folder, run.case.method))
    if restored is not None:
        watch.write(f"resuming from {restored.info.name}")
        state = TrainerState.model_validate_json((restored.folder / STATE_FILE).read_text())
        engine.restore_optimizer_state(load_optimizer_state(restored.folder, state))
        restored.discard_copy()
    batches = _batches(run, rank)
    with TemporaryDirectory() as folder, ExitStack() as at_the_end:
        curves = at_the_end.enter_context(closing(JsonlLogger(Path(folder) / METRICS_FILE)))
        writer = CheckpointWriter(
            store=store,
            staging=staging,
            engine=engine,
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
            identity=RunIdentity(run.driver_id, run.group, "model_id: tiny\n", "data/0", batches.sequences_per_step),
            record_files=[Path(folder) / METRICS_FILE],
            num_to_keep=run.num_to_keep,
            supervision=watch,
            on_commit=lambda info: watch.write(f"saved {info.name}"),
            resumed_from=() if restored is None else (restored.info.name,),
        )
        at_the_end.enter_context(closing(writer))
        parts = LoopParts(
            engine=engine,
            batches=batches,
            learning_rate=lambda step: 1e-3 / step,
            evaluate=lambda: evaluate(engine, _batches(run, rank, is_validation=True)),
            checkpoints=writer,
            supervision=watch,
            logger=curves,
            meter=StepMeter(run.case.num_workers, None),
            operations=count_operations(engine.module),
        )
        train(parts, state, _plan(run, batches.steps_per_epoch))
    watch.write("done")
    dist.destroy_process_group()


def _batches(run: SavedRun, rank: int, *, is_validation: bool = False) -> TrainingBatches:
    case = run.case
    return TrainingBatches(
        SampleReader([run.samples / ("packed.arrow" if case.packed else "alone.arrow")]),
        micro_batch_size=2 if is_validation else case.micro_batch_size,
        sequences_per_step=2 * case.num_workers if is_validation else GLOBAL_BATCH,
        rank=rank,
        num_workers=case.num_workers,
        seed=SEED,
        shuffle=not is_validation,
        layout=Layout(case.by_documents),
    )


def _plan(run: SavedRun, steps_per_epoch: int) -> LoopPlan:
    return LoopPlan(
        max_steps=run.max_steps,
        steps_per_epoch=steps_per_epoch,
        evaluation_interval_steps=run.steps_per_save,
        eval_first=False,
        early_stopping=None,
        seed=SEED,
    )

"""A checkpoint of a running training: what each rank writes into it, and how it becomes visible.

In: the engine and the trainer state. Out: a committed folder in the run's storage: Hugging Face weights at its top (so
that `from_pretrained` loads it), the tokenizer with the chat template, the resolved job, and what resuming needs.

The training waits while the tensors are copied to the memory of the host; writing, hashing and uploading go on beside
it. Rank 0 commits once all ranks have uploaded, which it sees in the storage itself. Storage, staging and the commit
rule are `llmforge.checkpoint`'s; this module knows what belongs inside.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.lineage import LINEAGE, Lineage, lineage_json
from llmforge.checkpoint.names import RESOLVED_JOB_FILE, attempt_word, checkpoint_name
from llmforge.checkpoint.queue import CAPACITY, SaveQueue
from llmforge.checkpoint.staging import StagedPart, Staging
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore, ranked
from llmforge.errors import CheckpointError
from llmforge.models.adapter_files import save_adapter
from llmforge.storage.files import check_free_space
from llmforge.storage.local import LocalStorage
from llmforge.train.engine import TrainingEngine
from llmforge.train.loop import Supervision
from llmforge.train.optimizer_state import OptimizerState
from llmforge.train.state import STATE_FILE, TrainerState, save_optimizer_state

_SMALL_FILES_BYTES = 64 << 20
"""Room for tokenizer, metrics and the like."""
_OPTIMIZER_BYTES = 12
"""Of a trained parameter: two moments and a master weight, in fp32."""
_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint tells of the run beside its tensors."""

    driver_id: str
    group: int
    """Which start of the workers."""
    resolved_job: str
    data_prefix: str
    """Of the prepared dataset, which is named by the hash of all that decides it."""
    sequences_per_step: int
    lineage: Lineage = ()
    """What it started from, where that was a checkpoint."""

    def metadata(self, state: TrainerState) -> dict[str, JsonValue]:
        """For the commit record: what is to be known without opening any file."""
        evaluation = state.evaluations[-1] if state.is_evaluated() else None
        return {
            "step": state.step,
            "eval_loss": None if evaluation is None else evaluation.loss,
            **({} if evaluation is None or evaluation.score is None else {"eval_score": evaluation.score}),
            "data": self.data_prefix,
            "sequences_per_step": self.sequences_per_step,
            LINEAGE: lineage_json(self.lineage),
        }


@dataclass(frozen=True)
class _Snapshot:
    """All that one rank writes of one moment, in the memory of the host."""

    state: TrainerState
    optimizer: OptimizerState
    weights: dict[str, torch.Tensor]
    records: Mapping[str, bytes]
    """By the names of their files."""

    @property
    def size_bytes(self) -> int:
        tensors = (*self.optimizer.tensors.values(), *self.weights.values())
        return sum(tensor.nbytes for tensor in tensors) + sum(map(len, self.records.values())) + _SMALL_FILES_BYTES


@dataclass
class CheckpointWriter:
    """Saves checkpoints of one run; `save` is collective. Close it in the end, whatever happened."""

    store: CheckpointStore
    staging: Staging
    engine: TrainingEngine
    tokenizer: PreTrainedTokenizerFast
    identity: RunIdentity
    record_files: Sequence[Path]
    """Of rank 0: the curves and the answers up to now, as far as there are any."""
    num_to_keep: int
    supervision: Supervision
    on_commit: Callable[[CheckpointInfo], None]
    """Called on rank 0, by the thread that uploads."""
    resumed_from: Collection[str] = ()
    _queue: SaveQueue = field(default_factory=SaveQueue)
    _saved_steps: list[int] = field(default_factory=list)
    _closed: threading.Event = field(default_factory=threading.Event)

    def save(self, state: TrainerState) -> None:
        """Copy what belongs into a checkpoint, and have it written and uploaded. Waits where too much is on its way."""
        self.supervision.enter("waiting for the upload of earlier checkpoints", state.step, is_watched=False)
        self._queue.reserve()
        dist.barrier()  # all ranks wait here for the slowest upload, so that nobody is taken for stalled
        self.supervision.enter("saving", state.step)
        attempt = attempt_word(self.identity.driver_id, self.identity.group, self._saved_steps.count(state.step))
        self._saved_steps.append(state.step)
        name = checkpoint_name(state.step, attempt)
        metadata = self.identity.metadata(state)
        self._queue.submit(partial(self._write, name, self._snapshot(state), metadata), self._upload)

    def check(self) -> None:
        """Raise what has stopped a save that was begun earlier."""
        self._queue.check()

    def finish(self) -> None:
        """Wait until all that was saved is there."""
        self.supervision.enter("uploading", max(self._saved_steps, default=0), is_watched=False)
        self._queue.finish()

    def close(self) -> None:
        """Let go of the threads."""
        self._closed.set()
        self._queue.close()

    def check_space(self, num_ranks_here: int) -> None:
        """See before the training that saves fit on the disk of this node, those of its other ranks included.

        Raises `StorageError`.
        """
        count = self.engine.num_trained_parameters
        weights = count * self.engine.bytes_per_weight + _SMALL_FILES_BYTES
        optimizer = _OPTIMIZER_BYTES * count
        share = optimizer // self.engine.num_workers * num_ranks_here + (weights if self.engine.rank == 0 else 0)
        check_free_space(
            self.staging.root,
            CAPACITY * share,
            f"{CAPACITY} checkpoints on their way (in the folder of LLMFORGE_CACHE)",
        )
        storage = self.store.storage
        if isinstance(storage, LocalStorage) and self.engine.rank == 0:
            check_free_space(storage.root, CAPACITY * (weights + optimizer), f"{CAPACITY} more checkpoints")

    def _snapshot(self, state: TrainerState) -> _Snapshot:
        optimizer_state = self.engine.optimizer_state()
        saved = state.model_copy(
            update={"num_updates": optimizer_state.num_updates, "loss_scaler": optimizer_state.loss_scaler}, deep=True
        )
        weights = self.engine.weights(trainable_only=isinstance(self.engine.module, PeftModel))
        files = [file for file in self.record_files if self.engine.rank == 0 and file.is_file()]
        return _Snapshot(saved, optimizer_state, weights, {file.name: file.read_bytes() for file in files})

    def _write(self, name: str, snapshot: _Snapshot, metadata: dict[str, JsonValue]) -> StagedPart:
        check_free_space(self.staging.root, snapshot.size_bytes, "a checkpoint")
        with self.staging.writing(name, self.engine.rank) as folder:
            save_optimizer_state(snapshot.optimizer, folder, self.engine.rank)
            if self.engine.rank == 0:
                self._write_model(snapshot, folder)
        return self.staging.mark_whole(name, self.engine.rank, self.engine.num_workers, metadata)

    def _write_model(self, snapshot: _Snapshot, folder: Path) -> None:
        module = self.engine.module
        assert isinstance(module, PeftModel | PreTrainedModel)
        if isinstance(module, PeftModel):
            save_adapter(module, snapshot.weights, folder)
        else:
            module.save_pretrained(folder, state_dict=snapshot.weights)
        self.tokenizer.save_pretrained(folder)
        (folder / RESOLVED_JOB_FILE).write_text(self.identity.resolved_job, encoding="utf-8")
        (folder / STATE_FILE).write_text(snapshot.state.model_dump_json(indent=2))
        for name, data in snapshot.records.items():
            (folder / name).write_bytes(data)

    def _upload(self, part: StagedPart) -> None:
        upload_part(self.store, self.staging, part)
        if part.record.rank == 0:
            self._await_other_ranks(part.record.name)
            info = self.store.commit(part.record.name)
            publish(self.store, info, self.num_to_keep, protect=self.resumed_from)
            self.resumed_from = ()
            self.on_commit(info)

    def _await_other_ranks(self, name: str) -> None:
        """Until the storage shows what all of them have uploaded. A rank that cannot ends the run, and this wait."""
        wait_seconds = _FIRST_POLL_SECONDS
        while len(self.store.uploaded_ranks(name)) < self.engine.num_workers:
            if self._closed.wait(wait_seconds):
                raise CheckpointError(f"{name}: left before all ranks had uploaded")
            wait_seconds = min(2 * wait_seconds, _LONGEST_POLL_SECONDS)


def upload_part(store: CheckpointStore, staging: Staging, part: StagedPart) -> None:
    """Bring a whole part into the storage; it then needs its place on this node's disk no longer."""
    record = part.record
    store.upload_rank(record.name, part.folder, record.rank, record.world_size, record.metadata)
    staging.remove(record.name, record.rank)


def publish(store: CheckpointStore, info: CheckpointInfo, num_to_keep: int, protect: Collection[str] = ()) -> None:
    """After a commit: have `latest` and `best` name what they mean, and remove what need not be kept."""
    store.point("latest", info.name)
    store.point("best", ranked(store.list())[0].name)
    store.retain(num_to_keep, protect)

"""A checkpoint of a running training: what each rank writes into it, and how it becomes visible.

In: the engine and the trainer state. Out: a committed folder in the run's storage: Hugging Face weights at its top (so
that `from_pretrained` loads it), the tokenizer with the chat template, the resolved job, and what resuming needs.
Storage and the commit rule are `llmforge.checkpoint`'s; this module knows what belongs inside.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.names import checkpoint_name, new_attempt_id
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore, ranked
from llmforge.train.engine import TrainingEngine
from llmforge.train.state import STATE_FILE, TrainerState, save_optimizer_state

RESOLVED_JOB_FILE = "resolved_job.yaml"


@dataclass
class CheckpointWriter:
    """Saves checkpoints of one run; `save` is collective."""

    store: CheckpointStore
    engine: TrainingEngine
    tokenizer: PreTrainedTokenizerFast
    resolved_job: str
    num_to_keep: int

    def save(self, state: TrainerState) -> CheckpointInfo | None:
        """Write, upload and commit; returns what was committed, on rank 0."""
        name = checkpoint_name(state.step, str(_from_rank_0(new_attempt_id())))
        folder = Path(tempfile.mkdtemp(prefix="llmforge-checkpoint-"))
        try:
            self._write(folder, state)
            self.store.upload_rank(name, folder, self.engine.rank)
        finally:
            shutil.rmtree(folder)
        dist.barrier()  # the manifest comes last, when all ranks' files are there
        return self._commit(name, state) if self.engine.rank == 0 else None

    def _write(self, folder: Path, state: TrainerState) -> None:
        optimizer_state = self.engine.optimizer_state()
        save_optimizer_state(optimizer_state, folder, self.engine.rank)
        module = self.engine.module
        weights = self.engine.weights(trainable_only=isinstance(module, PeftModel))
        if self.engine.rank != 0:
            return
        assert isinstance(module, PeftModel | PreTrainedModel)
        module.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        (folder / RESOLVED_JOB_FILE).write_text(self.resolved_job, encoding="utf-8")
        saved = state.model_copy(
            update={"num_updates": optimizer_state.num_updates, "loss_scaler": optimizer_state.loss_scaler}
        )
        (folder / STATE_FILE).write_text(saved.model_dump_json(indent=2))

    def _commit(self, name: str, state: TrainerState) -> CheckpointInfo:
        loss = state.evaluations[-1].loss if state.is_evaluated() else None
        info = self.store.commit(name, self.engine.num_workers, {"step": state.step, "eval_loss": loss})
        self.store.point("latest", name)
        self.store.point("best", ranked(self.store.list())[0].name)
        self.store.retain(self.num_to_keep, protect=[])
        return info


def _from_rank_0(value: str) -> object:
    values: list[object] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]

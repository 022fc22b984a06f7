"""Saves of two ranks, and what to look for in the checkpoints of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import JsonValue

from llmforge.checkpoint.names import checkpoint_name
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from tests.checkpoint.memory_storage import MemoryStorage

NUM_RANKS = 2
DRIVER = "3fa29c"
ATTEMPT = "3fa29c00"


def rank_files(folder: Path, step: int, rank: int) -> Path:
    """The local files of one rank; rank 0 also has the weights."""
    folder = folder / f"step-{step}-rank-{rank}"
    (folder / "engine").mkdir(parents=True, exist_ok=True)
    (folder / "engine" / f"state-{rank}.bin").write_bytes(f"state of {rank} at {step}".encode() * 50)
    if rank == 0:
        (folder / "model.safetensors").write_bytes(f"weights at {step}".encode() * 100)
    return folder


def upload(store: CheckpointStore, local: Path, step: int, attempt: str = ATTEMPT, eval_loss: JsonValue = None) -> str:
    """All ranks upload; the name of the checkpoint that may be committed then."""
    name = checkpoint_name(step, attempt)
    for rank in range(NUM_RANKS):
        metadata = {"eval_loss": eval_loss, "epoch": 1}
        store.upload_rank(name, rank_files(local, step, rank), rank, NUM_RANKS, metadata)
    return name


def save(
    store: CheckpointStore, local: Path, step: int, attempt: str = ATTEMPT, eval_loss: JsonValue = None
) -> CheckpointInfo:
    return store.commit(upload(store, local, step, attempt, eval_loss))


def names(store: CheckpointStore) -> list[str]:
    return [info.name for info in store.list()]


def wrong_files(storage: MemoryStorage) -> list[str]:
    """What visible checkpoints lack: empty when every one of them has all of its bytes."""
    wrong = []
    for info in CheckpointStore(storage).list():
        assert len(info.files) == NUM_RANKS + 1
        for record in info.files:
            data, _ = storage.files.get(f"checkpoints/{info.name}/{record.path}", (b"", None))
            if hashlib.sha256(data).hexdigest() != record.sha256:
                wrong.append(f"{info.name}: {record.path}")
    return wrong

"""From an address that a person gives to the checkpoints it means: the folder of a run, or that of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.checkpoint.names import FOLDER, is_checkpoint_name
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.errors import CheckpointError
from llmforge.storage.base import open_storage


@dataclass(frozen=True)
class CheckpointAddress:
    """A run, and one of its checkpoints where the address names it."""

    run_uri: str
    name: str | None

    @classmethod
    def of(cls, uri: str) -> CheckpointAddress:
        """Nothing is looked up: the form of the address decides."""
        parent, _, name = uri.rstrip("/").rpartition("/")
        run, _, folder = parent.rpartition("/")
        if is_checkpoint_name(name) and folder == FOLDER:
            return cls(run or ("/" if parent.startswith("/") else "."), name)
        return cls(uri, None)

    def no_checkpoint(self, what: str) -> CheckpointError:
        """The error where the address leads to no checkpoint of a kind."""
        return CheckpointError(
            f"{self.run_uri}: no {what}; expected the folder of a run (with {FOLDER}/ in it) or of one checkpoint"
        )


def find_checkpoint(uri: str, checkpoint: str) -> tuple[CheckpointStore, CheckpointInfo]:
    """The store of a run and one of its checkpoints; `uri` is the run's folder or the checkpoint's own.

    `checkpoint` is best, latest or a name; the folder of a checkpoint means that one. Raises `CheckpointError`.
    """
    address = CheckpointAddress.of(uri)
    store = CheckpointStore(open_storage(address.run_uri))
    if not store.list():
        raise address.no_checkpoint("complete checkpoint")
    return store, store.resolve(address.name or checkpoint)

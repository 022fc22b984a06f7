"""Whether a run has come to its end: a small file in its folder, so that nobody takes a half-trained model for it.

It is written once all checkpoints of the run are there, and removed when the run goes on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmforge.storage.base import NotFoundError, Storage, read_bytes, write_bytes

END_FILE = "end.json"


class RunEnd(BaseModel):
    """How a run has ended."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    outcome: Literal["finished", "stopped"]
    """`stopped`: saved before its last step, because somebody asked for that."""
    step: int
    """Of its latest checkpoint."""


def write_end(storage: Storage, end: RunEnd) -> None:
    """The run whose folder is the root of `storage` has ended."""
    write_bytes(storage, END_FILE, end.model_dump_json().encode())


def remove_end(storage: Storage) -> None:
    """The run begins, or goes on."""
    storage.delete(END_FILE)


def read_end(storage: Storage) -> RunEnd | None:
    """None for a run that is trained right now, or was cut short."""
    try:
        return RunEnd.model_validate_json(read_bytes(storage, END_FILE))
    except (NotFoundError, ValidationError):
        return None

"""What crosses from the driver to the training workers and those of the reference model, and nothing else."""

from dataclasses import dataclass
from typing import Any

from llmforge.checkpoint.lineage import Lineage
from llmforge.dataset.prepared import PreparedDataset
from llmforge.dataset.shards import Split
from llmforge.train.driver_record import Driver


@dataclass(frozen=True)
class WorkerTask:
    """All that a worker is told; it travels by pickle and holds no secret."""

    job_json: str
    """The resolved job, validated again by the worker."""
    resolved_job_text: str
    run_uri: str
    lineage: Lineage
    """For its checkpoints."""
    prepared: PreparedDataset
    cache_folder: str
    mailbox: Any
    """Handle of the driver's mailbox actor."""
    working_folder: str
    """Where the driver was started: relative paths of a job count from there."""
    driver: Driver
    sent_at: float
    """When the driver asked for workers, in seconds since the epoch."""


@dataclass(frozen=True)
class ReferenceTask:
    """All that a worker of the reference model is told."""

    job_json: str
    prepared: PreparedDataset
    splits: tuple[Split, ...]
    """Whose samples are counted through, those of one behind those of the other."""
    storage_uri: str
    cache_folder: str

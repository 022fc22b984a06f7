"""What crosses from the driver to the training workers, and nothing else.

The driver, and Ray Train's controller process, load this module and not the worker: torch, transformers, deepspeed and
peft take seconds to import, and only the workers need them.
"""

import os
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llmforge.dataset.pipeline import PreparedDataset


@dataclass(frozen=True)
class WorkerTask:
    """All that a worker is told; it travels by pickle and holds no secret."""

    job_json: str
    """The resolved job, validated again by the worker."""
    resolved_job_text: str
    run_uri: str
    prepared: PreparedDataset
    cache_folder: str
    mailbox: Any
    """Handle of the driver's mailbox actor."""
    working_folder: str
    """Where the driver was started: relative paths of a job count from there."""
    sent_at: float
    """When the driver asked for workers, in seconds since the epoch."""


def start_worker(task: WorkerTask) -> None:
    """Entry of a Ray Train worker: imports the worker where it runs."""
    if os.path.isdir(task.working_folder):  # Ray Train has gone to a folder of its own
        os.chdir(task.working_folder)
    entered_at = time.time()
    worker = import_module("llmforge.train.worker")
    start_seconds = {
        "worker: start by Ray Train": entered_at - task.sent_at,
        "worker: imports of torch, transformers, deepspeed, peft": time.time() - entered_at,
    }
    worker.train_worker(task, start_seconds)

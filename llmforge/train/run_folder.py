"""Whether a job may be trained in the folder of a run: what is there already, and whether it can go on.

In: the checkpoints of the run, and the job as resolved. Out: nothing, or an error that says what to do.
"""

import logging

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.resolve import job_digest
from llmforge.config.sizing import global_batch_size
from llmforge.errors import CheckpointError, ConfigError
from llmforge.storage.base import Storage

logger = logging.getLogger(__name__)


def latest_run_of(job: JobConfig, storage: Storage) -> str:
    """The newest run of this very job: its digest ends the names of its runs, and its time stands before."""
    names = {file.key.split("/")[0] for file in storage.list() if "/" in file.key}
    runs = sorted(name for name in names if name.endswith(f"-{job_digest(job)}"))
    if not runs:
        known = ", ".join(sorted(names - {"data"})) or "none"
        raise CheckpointError(
            f"--resume: {storage.root_uri} holds no run of this job; runs there: {known}. "
            "Name one with run_name=..., or start without --resume (a changed job is another job)"
        )
    return runs[-1]


def check_run_folder(store: CheckpointStore, *, resume: bool) -> None:
    """A run that has checkpoints goes on only when that is asked for, and only a run that is there can go on.

    Raises `ConfigError` and `CheckpointError`.
    """
    checkpoints, run_uri = store.list(), store.storage.root_uri
    if checkpoints and not resume:
        raise ConfigError(
            f"run_name: {run_uri} already holds {len(checkpoints)} checkpoints, the latest of step "
            f"{checkpoints[-1].step}; "
            "go on with --resume, or choose another run_name"
        )
    if resume and not checkpoints:
        if not store.storage.list():
            raise CheckpointError(f"--resume: {run_uri} does not exist; check run_name, or start without --resume")
        logger.info(
            "%s has no complete checkpoint yet: it starts from the beginning, or from what it left behind", run_uri
        )


def check_continuity(checkpoint: CheckpointInfo, job: JobConfig, data_prefix: str) -> None:
    """The position in the data is a number of steps, so these must be the same steps of the same data.

    `data_prefix` is that of the prepared dataset. Raises `CheckpointError`.
    """
    before, name = checkpoint.metadata, checkpoint.name
    if before.get("data", data_prefix) != data_prefix:
        raise CheckpointError(
            f"--resume: {name} was trained on other data ({before['data']}, now {data_prefix}): rows, prompt format,"
            " tokenizer, context_length, packing or llmforge itself changed, and its position means nothing there."
            " Restore what was changed, or start a new run from the weights (initial_base_model_ckpt_path,"
            " initial_adapter_model_ckpt_path)."
        )
    now = global_batch_size(job)
    if before.get("sequences_per_step", now) != now:
        raise CheckpointError(
            f"--resume: {name} was trained with {before['sequences_per_step']} sequences a step, now it is {now}"
            f" (num_devices {job.max_devices} x gradient_accumulation_steps {job.gradient_accumulation_steps} x"
            f" train_batch_size_per_device {job.train_batch_size_per_device}). Data and schedule would not go on where"
            f" they stopped: set these three so that their product is {before['sequences_per_step']}."
        )

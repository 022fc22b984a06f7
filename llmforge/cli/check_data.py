"""`llmforge validate --data`: a job file and overrides in, what its data come to or an error out.

The data stage runs as it would for training, on a Ray of this machine or the one that RAY_ADDRESS names, and leaves the
prepared dataset below `output_dir`, where training finds it. Of the model it needs the tokenizer and `config.json`, and
it imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from llmforge.cli.places import cache_folder
from llmforge.cli.train import DisplayHandler
from llmforge.cli.validate import describe_job, load_checked_job
from llmforge.config.deepspeed import read_deepspeed
from llmforge.config.job import JobConfig
from llmforge.config.resolve import JobFacts, global_batch_size, resolve_job, size_job, steps_per_epoch
from llmforge.dataset.pipeline import PreparedDataset, prepare
from llmforge.metrics.progress import ProgressDisplay
from llmforge.models.folder import model_folder, read_model_facts, read_tokenizer_json
from llmforge.storage.base import check_writable, open_storage
from llmforge.train.cluster import start_ray


def run_check_data(job_file: Path, overrides: Sequence[str]) -> str:
    """A summary of the job, of its data, and the number of steps. Raises `LlmforgeError` for whatever is wrong."""
    job = load_checked_job(str(job_file), overrides)
    with ProgressDisplay() as display:
        logging.getLogger("llmforge").handlers = [DisplayHandler(display)]
        sized, prepared = _prepare(job, display)
    return "\n".join([describe_job(job, str(job_file)), prepared.stats.describe(), _steps(sized, prepared)])


def _prepare(job: JobConfig, display: ProgressDisplay) -> tuple[JobConfig, PreparedDataset]:
    """The job with all its numbers, and its data."""
    folder = model_folder(job.model_id, with_weights=False)
    tokenizer_json, model = read_tokenizer_json(folder), read_model_facts(folder)
    facts = JobFacts(
        # Which devices there are does not matter to the data; training asks.
        has_gpu=job.accelerator != "cpu",
        started_at=datetime.now(),
        model_context_length=model.context_length,
        num_parameters=model.num_parameters,
        hidden_size=model.hidden_size,
    )
    job = resolve_job(read_deepspeed(job), facts)
    storage = open_storage(job.output_dir)
    check_writable(storage)
    display.phase("starting Ray")
    start_ray(verbose=False)
    display.phase("preparing data")
    prepared = prepare(
        job,
        tokenizer_json,
        storage,
        cache_folder(),
        model_context_length=model.context_length,
        progress=display.data,
    )
    return size_job(job, prepared.sizes(model.context_length)), prepared


def _steps(job: JobConfig, prepared: PreparedDataset) -> str:
    an_epoch = steps_per_epoch(job, prepared.stats.train.samples)
    return f"steps: {job.max_steps}, {an_epoch} an epoch, up to {global_batch_size(job)} sequences each"

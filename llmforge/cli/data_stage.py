"""The data stage of a job on one machine, without its model's weights: what `prepare` and `validate --data` share.

In: a checked job. Out: the prepared dataset below `output_dir`, where training finds it, and the job with its measured
numbers. It runs on a Ray of this machine or the one that RAY_ADDRESS names, and imports no torch.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from llmforge.cli.local_job import LocalJob, resolve_locally
from llmforge.cli.places import cache_folder
from llmforge.cli.train import DisplayHandler
from llmforge.config.job import JobConfig
from llmforge.config.resolve import size_job
from llmforge.dataset.pipeline import PreparedDataset, prepare
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import check_writable, join_uri, open_storage
from llmforge.train.cluster import start_ray


@dataclass(frozen=True)
class PreparedJob:
    """A job whose data are prepared."""

    local: LocalJob
    """As resolved before any data were read."""
    job: JobConfig
    """With the numbers that follow from the data."""
    prepared: PreparedDataset
    uri: str
    """Where the prepared dataset lies."""
    seconds: float
    """From reading the first file to the committed shards, or to finding them; without the start of Ray."""


def prepare_data(submitted: JobConfig) -> PreparedJob:
    """Run the data stage, or find its result; shows its progress on stderr. Raises `LlmforgeError`."""
    with ProgressDisplay() as display:
        logging.getLogger("llmforge").handlers = [DisplayHandler(display)]
        local = resolve_locally(submitted)
        job, context_length = local.job, local.model.facts.context_length
        storage = open_storage(job.output_dir)
        check_writable(storage)
        display.phase("starting Ray")
        start_ray(verbose=False)
        display.phase("preparing data")
        started = time.perf_counter()
        prepared = prepare(
            job,
            local.model.tokenizer_json,
            storage,
            cache_folder(),
            model_context_length=context_length,
            progress=display.data,
        )
        seconds = time.perf_counter() - started
        sized = size_job(job, prepared.sizes(context_length))
    return PreparedJob(local, sized, prepared, join_uri(storage.root_uri, prepared.prefix), seconds)

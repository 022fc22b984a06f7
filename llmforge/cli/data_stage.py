"""The data stage of a job on one machine, without its model's weights: what `prepare` and `validate --data` share.

In: a checked job. Out: the prepared dataset below `output_dir`, where training finds it, and the job with its measured
numbers. It runs on a Ray of this machine or the one that RAY_ADDRESS names, and imports no torch. Where the dataset is
there already, no Ray is imported or started.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from llmforge.cli.local_job import LocalJob, resolve_locally
from llmforge.cli.places import cache_folder
from llmforge.config.job import JobConfig
from llmforge.config.sizing import size_job
from llmforge.dataset.labels import check_label_counts
from llmforge.dataset.prepared import PreparedDataset, find_prepared, read_inputs
from llmforge.dataset.rated import warn_of_imbalance
from llmforge.metrics.loggers import MessageHandler
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import Storage, check_writable, join_uri, open_storage

logger = logging.getLogger(__name__)


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
        logging.getLogger("llmforge").handlers = [MessageHandler(display.message)]
        if submitted.accelerator == "auto":
            logger.info("accelerator: auto; planned as for GPUs, training looks whether there are any")
        local = resolve_locally(submitted)
        storage = open_storage(local.job.output_dir)
        prepared, seconds = _find_or_prepare(local, storage, display)
        if local.job.classifier_config is not None:
            check_label_counts(local.job.classifier_config, prepared.stats)
        facts = local.model.facts
        warn_of_imbalance(local.job, prepared.stats)
        sized = size_job(local.job, prepared.sizes(facts.context_length), facts.sizes)
    return PreparedJob(local, sized, prepared, join_uri(storage.root_uri, prepared.prefix), seconds)


def _find_or_prepare(local: LocalJob, storage: Storage, display: ProgressDisplay) -> tuple[PreparedDataset, float]:
    """(the dataset, the seconds that it took)."""
    display.phase("looking for prepared data")
    started = time.perf_counter()
    inputs = read_inputs(local.job, local.tokenizer, local.model.facts.context_length, cache_folder())
    found = find_prepared(storage, inputs.name)
    seconds = time.perf_counter() - started
    if found is not None:
        return found, seconds
    check_writable(storage)
    display.phase("starting Ray")
    from llmforge.dataset.pipeline import make_prepared
    from llmforge.train.cluster import start_ray

    start_ray(verbose=False)
    display.phase("preparing data")
    started = time.perf_counter()
    prepared = make_prepared(inputs, storage, cache_folder(), display.data)
    return prepared, seconds + time.perf_counter() - started

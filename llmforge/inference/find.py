"""Where a trained model lies: the run's folder, one of its checkpoints, or an exported folder.

In: a URI, local or `s3://`. Out: a `TrainedSource`: the job that trained it, and how its files come to this machine. It
imports no torch, so that what is not there is said at once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmforge.checkpoint.exported import ExportRecord, read_export_record
from llmforge.checkpoint.find import CheckpointAddress, find_checkpoint
from llmforge.checkpoint.names import FOLDER, OPTIMIZER_PREFIX, RESOLVED_JOB_FILE
from llmforge.checkpoint.records import manifest_of
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.classifier import Classifier
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml
from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import CheckpointError
from llmforge.inference.classifier_file import answer_config, read_classifier
from llmforge.storage.base import Storage, join_uri, open_storage
from llmforge.storage.manifest import local_folder
from llmforge.storage.types import DamagedError

EXPORT_FOLDER = "exports"
"""Holds the exported folders of object stores, in the cache of this machine."""


@dataclass(frozen=True)
class TrainedSource:
    """A trained model that was found and whose weights have not been read yet."""

    uri: str
    """Leads to this very model, also once the run has saved a better or later one."""
    job: JobConfig
    """The resolved job that trained it."""
    checkpoint: CheckpointInfo
    fetch: Callable[[], Path]
    """Bring its files to this machine; the folder with them, verified. Raises `LlmforgeError`."""
    fetch_small: Callable[[], Path]
    """As `fetch`, without the weights."""
    cache_folder: Path
    """Where the base model of an adapter comes to, if it lies in an object store."""
    classifier: Classifier | None
    """None for a model that writes text."""
    is_export: bool = False

    @property
    def generation(self) -> GenerationConfig:
        """How its answers are made: as its job says, or one label."""
        return answer_config(self.job, self.classifier)


def find_trained_model(uri: str, checkpoint: str, cache_folder: Path) -> TrainedSource:
    """Find a run's folder (`checkpoint`: best, latest or a name), a checkpoint's, or an exported one, and read its job.

    Raises `CheckpointError` where there is no complete checkpoint.
    """
    # The form of a checkpoint's address decides, so only another folder is looked into.
    storage = open_storage(uri)
    record = None if CheckpointAddress.of(uri).name else read_export_record(storage)
    if record is not None:
        return _exported(storage, record, cache_folder)
    store, info = find_checkpoint(uri, checkpoint)
    return _checkpoint(store, info, cache_folder)


def _checkpoint(store: CheckpointStore, info: CheckpointInfo, cache_folder: Path) -> TrainedSource:
    target = cache_folder / FOLDER / info.name
    needed = [record.path for record in info.files if not record.path.startswith(OPTIMIZER_PREFIX)]

    def fetch(paths: list[str]) -> Path:
        return store.local_folder(info, target, paths)

    job_file = fetch([RESOLVED_JOB_FILE]) / RESOLVED_JOB_FILE
    return TrainedSource(
        uri=join_uri(store.storage.root_uri, FOLDER, info.name),
        job=job_from_yaml(job_file.read_text(encoding="utf-8"), f"{info.name}/{RESOLVED_JOB_FILE}"),
        checkpoint=info,
        fetch=lambda: fetch(needed),
        fetch_small=lambda: fetch(_without_weights(needed)),
        cache_folder=cache_folder,
        classifier=read_classifier(needed, fetch),
    )


def _exported(storage: Storage, record: ExportRecord, cache_folder: Path) -> TrainedSource:
    # Named by what is in it: an export may be made anew at the same address.
    version = hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:32]
    info, target = record.info, cache_folder / EXPORT_FOLDER / version

    def fetch(paths: list[str]) -> Path:
        try:
            return local_folder(storage, "", manifest_of(info), target, paths)
        except DamagedError as error:
            raise CheckpointError(f"damaged export: {error}\n(export the run again)") from error

    paths = [file.path for file in info.files]
    return TrainedSource(
        uri=storage.root_uri,
        job=record.job,
        checkpoint=info,
        fetch=lambda: fetch(paths),
        fetch_small=lambda: fetch(_without_weights(paths)),
        cache_folder=cache_folder,
        classifier=read_classifier(paths, fetch),
        is_export=True,
    )


def _without_weights(paths: list[str]) -> list[str]:
    return [path for path in paths if not path.endswith(".safetensors")]

"""The sources of a job, ready to be read: the single files of each, and how their rows are read.

In: a job. Out: one `JobSource` for every entry of `train_path` and `valid_path`, in their order. Which format rows have
is looked up in the first of them where the job leaves it open.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from llmforge.config.data import DatasetConfig, DataSource, RowFormat, dataset_for
from llmforge.config.job import JobConfig
from llmforge.dataset.detection import detect_format
from llmforge.dataset.files import expand_uris
from llmforge.dataset.hub import is_hub_dataset, load_hub_dataset
from llmforge.dataset.sources import first_lines
from llmforge.errors import DataError
from llmforge.storage.base import open_storage

logger = logging.getLogger(__name__)

NUM_DETECTED_ROWS = 100
NO_ROWS = "no rows; expected records, such as one JSON object per line"
LOADED_FOLDER = "data/loaded"
"""Below `output_dir`: rows of Hugging Face datasets."""


@dataclass(frozen=True)
class JobSource:
    """One entry of `train_path` or `valid_path`."""

    path: str
    """As it stands in the job."""
    uris: tuple[str, ...]
    """Its single files."""
    is_validation: bool
    weight: float | None
    dataset: DatasetConfig
    """How its rows are read."""
    evidence: str | None = None
    """Why they have this format, where it was looked up."""

    @property
    def row_format(self) -> RowFormat:
        """The format of its rows."""
        return self.dataset.format


def list_sources(job: JobConfig) -> list[JobSource]:
    """All sources with their files; their formats as the job has them, so perhaps `auto`.

    Hugging Face datasets are loaded and put below the job's `output_dir`, where every node can read them. Raises
    `DataError` and `StorageError` for what is not there.
    """
    sources = training_sources(job)
    sources += [_list_source(source, job, is_validation=True) for source in job.valid_sources]
    _check_loaded_apart(sources, job)
    return sources


def training_sources(job: JobConfig) -> list[JobSource]:
    """As `list_sources`, those of `train_path`."""
    return [_list_source(source, job, is_validation=False) for source in job.train_sources]


def with_format(source: JobSource, task: str | None, cache_folder: Path, *, rated: bool = False) -> JobSource:
    """The same source, its format looked up in the first rows if it is open. `rated`: its answers are desirable or not.

    Raises `DataError` where it cannot be told, and where the task cannot be trained on it.
    """
    if source.row_format == "auto":
        records = [record for _, _, record in islice(first_lines(source.uris, cache_folder), NUM_DETECTED_ROWS)]
        if not records:
            raise DataError(f"{source.path}: {NO_ROWS}")
        try:
            detected = detect_format(records, source.dataset, rated=rated)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from error
        dataset = source.dataset.model_copy(update={"format": detected.format})
        source = replace(source, dataset=dataset, evidence=detected.evidence)
    _check_compared(source, task, rated)
    if task == "classification" and source.row_format in ("text", "segments"):
        raise DataError(
            f"{source.path}: rows of the format {source.row_format}, but task is {task}, which learns from the last "
            "answer of a conversation; give rows of messages, or of a prompt and its label, or remove classifier_config"
        )
    if source.row_format == "text" and task != "causal_lm":
        raise DataError(
            f"{source.path}: rows of plain text, but task is {task}: there is no answer to be learnt in them; "
            "set task: causal_lm to train every token"
        )
    return source


def _check_compared(source: JobSource, task: str | None, rated: bool) -> None:
    """Whether the rows hold what answers are compared by, where they are, and no label that would have no effect."""
    found = f"{source.path}: rows of the format {source.row_format}, but"
    pairs = "rows with a chosen and a rejected answer (format: preference)"
    if rated and source.row_format not in ("preference", "unpaired_preference"):
        raise DataError(
            f"{found} preference_tuning_config.loss is kto, which learns from rows with an answer and a label (format: "
            f"unpaired_preference) or from {pairs}; give such rows, or remove preference_tuning_config"
        )
    if not rated and task == "preference_tuning" and source.row_format != "preference":
        raise DataError(
            f"{found} task is {task}, which learns from {pairs}; give such rows, or remove preference_tuning_config"
        )
    if not rated and source.row_format == "unpaired_preference":
        raise DataError(
            f"{found} task is {task}, which would train the undesirable answers as well; set "
            "preference_tuning_config.loss: kto, or take out these rows and set the format of what is left"
        )


def log_formats(sources: Sequence[JobSource]) -> None:
    """Say which formats were looked up, and why."""
    for source in sources:
        if source.evidence is not None:
            logger.info("data: %s: rows of the format %s: %s", source.path, source.row_format, source.evidence)


def _check_loaded_apart(sources: Sequence[JobSource], job: JobConfig) -> None:
    """A split that `load_kwargs` names holds for training and validation."""
    for source in sources:
        is_loaded = is_hub_dataset(source.path, job.dataset.load_kwargs)
        trained = [other for other in sources if not other.is_validation and other.uris == source.uris]
        if source.is_validation and is_loaded and trained:
            raise DataError(
                f"{source.path}: training and validation would have the same rows; give a split to each: "
                "dataset.load_kwargs.split: {train: ..., validation: ...}"
            )


def _list_source(source: DataSource, job: JobConfig, *, is_validation: bool) -> JobSource:
    uris = tuple(_files(source.path, job, is_validation=is_validation))
    return JobSource(source.path, uris, is_validation, source.weight, dataset_for(source, job.dataset))


def _files(path: str, job: JobConfig, *, is_validation: bool) -> list[str]:
    if not is_hub_dataset(path, job.dataset.load_kwargs):
        return expand_uris([path])
    loaded = load_hub_dataset(
        path,
        job.dataset.load_kwargs,
        default_split="validation" if is_validation else "train",
        storage=open_storage(job.output_dir),
        prefix=LOADED_FOLDER,
    )
    return [loaded]

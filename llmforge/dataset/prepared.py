"""A prepared dataset: the name that everything which decides it gives it, where it lies, and how it is opened.

In: a resolved job and the tokenizer's text. Out: a name, and the `PreparedDataset` of this name where there is one.
It does not know how one is made, and imports no Ray: a second run of the same job starts none to find its data.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmforge.config.job import JobConfig
from llmforge.config.job_memory import SequenceSizes
from llmforge.config.sizing import DataSizes
from llmforge.dataset.job_sources import JobSource, list_sources
from llmforge.dataset.shards import SampleReader, Split, is_shard_of
from llmforge.dataset.stats import DatasetStats
from llmforge.dataset.tokenize import TokenizerText
from llmforge.errors import DataError
from llmforge.storage.base import Storage, join_uri
from llmforge.storage.cache import file_version, fingerprint
from llmforge.storage.manifest import (
    AlreadyCommittedError,
    check_folder,
    commit_folder,
    local_folder,
    read_manifest,
    remove_folder,
)
from llmforge.storage.types import DamagedError

logger = logging.getLogger(__name__)

STAGE_VERSION = 6
"""Raised whenever the same inputs would give other samples or other statistics."""

DATA_FOLDER = "data"


@dataclass(frozen=True)
class PreparedDataset:
    """A committed prepared dataset; it travels to workers, which open it by themselves."""

    name: str
    """Hash of everything that decides the content."""
    stats: DatasetStats
    was_cached: bool
    reference: str | None = None
    """Folder with the log-probabilities of the reference model, where these were computed beforehand."""

    @property
    def prefix(self) -> str:
        """Where it lies below `output_dir`; all runs there share it."""
        return f"{DATA_FOLDER}/{self.name}"

    def open(self, split: Split, storage: Storage, cache_folder: Path) -> SampleReader:
        """Fetch the shards to this node, verified, unless it is there, and map it into memory."""
        shards = _fetched(self.name, split, storage, cache_folder)
        reference = [] if self.reference is None else _fetched(self.reference, split, storage, cache_folder)
        return SampleReader(shards, reference)

    def sizes(self, model_context_length: int | None) -> DataSizes:
        """What the rest of the job's numbers follow from."""
        return DataSizes(
            length_p95=self.stats.lengths.p95,
            longest_tokens=self.stats.lengths.longest,
            num_train_samples=self.stats.train.samples,
            model_context_length=model_context_length,
            sequences=SequenceSizes(self.stats.train.longest_sample, self.stats.train.most_trained),
        )


def _fetched(name: str, split: Split, storage: Storage, cache_folder: Path) -> list[Path]:
    """The shards of a split in one of the folders of data, on this node."""
    prefix = f"{DATA_FOLDER}/{name}"
    uri = join_uri(storage.root_uri, prefix)
    manifest = read_manifest(storage, prefix)
    if manifest is None:
        raise DataError(f"{uri}: the prepared dataset is gone; start the job again to make it anew")
    try:
        shards = [record.path for record in manifest.files if is_shard_of(split, record.path)]
        folder = local_folder(storage, prefix, manifest, cache_folder / prefix, paths=shards)
    except DamagedError as error:
        raise DataError(
            f"damaged prepared dataset: {error}\nremove {uri} and start the job again to make it anew"
        ) from error
    return [folder / shard for shard in shards]


def find_prepared(storage: Storage, name: str) -> PreparedDataset | None:
    """The prepared dataset of this name below `output_dir`, where `storage` is rooted; None where there is none.

    One that is damaged is removed, so that it is made anew.
    """
    prefix = f"{DATA_FOLDER}/{name}"
    try:
        manifest = read_manifest(storage, prefix)
        if manifest is None:
            return None
        check_folder(storage, prefix, manifest)
    except DamagedError as error:
        logger.warning("data: made anew, because the prepared dataset is damaged: %s", error)
        remove_folder(storage, prefix)
        return None
    logger.info("data: unchanged, using %s", join_uri(storage.root_uri, prefix))
    return PreparedDataset(name, DatasetStats.model_validate(manifest.metadata["stats"]), was_cached=True)


def commit_prepared(storage: Storage, name: str, folder: Path, stats: DatasetStats) -> PreparedDataset:
    """Make what stands in a local folder the prepared dataset of this name."""
    prefix = f"{DATA_FOLDER}/{name}"
    try:
        commit_folder(storage, prefix, folder, metadata={"stats": stats.model_dump(mode="json")})
    except AlreadyCommittedError:  # another job has just prepared the same data
        logger.info("data: another job has prepared %s meanwhile", join_uri(storage.root_uri, prefix))
    return PreparedDataset(name, stats, was_cached=False)


@dataclass(frozen=True)
class StageInputs:
    """All that decides what the data stage makes of a job."""

    job: JobConfig
    """Resolved, but for what is measured from the data."""
    tokenizer: TokenizerText
    model_context_length: int | None
    sources: tuple[JobSource, ...]
    """Their formats as the job has them, so perhaps `auto`."""
    versions: Mapping[str, str]
    """Of every single file, by `file_version`, before it was read."""
    name: str
    """Of the prepared dataset."""


def read_inputs(
    job: JobConfig, tokenizer: TokenizerText, model_context_length: int | None, cache_folder: Path
) -> StageInputs:
    """Find the files of a job and give them a name.

    Reads local files whole, for their checksums; those of large files are kept in `cache_folder`.
    """
    sources = tuple(list_sources(job))
    versions = {uri: file_version(uri) for source in sources for uri in source.uris}
    is_mixed = any(source.weight is not None for source in sources)
    is_drawn = job.dataset.valid_fraction is not None or is_mixed or job.is_rated
    decides = {
        "stage": STAGE_VERSION,
        "sources": [_identity(source, cache_folder) for source in sources],
        "format": job.prompt_format.model_dump(mode="json"),
        "tokenizer": hashlib.sha256(tokenizer.json.encode()).hexdigest(),
        "eos_token": tokenizer.eos_token,
        "task": job.task,
        "is_rated": job.is_rated,
        "packing": job.packing,
        "context_length": job.context_length or f"measured, at most {model_context_length}",
        "dataset": job.dataset.model_dump(mode="json", exclude={"shuffle", "min_trained_share"}),
        "seed": job.seed if is_drawn else None,
        **({"labels": job.labels} if job.labels else {}),
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return StageInputs(job, tokenizer, model_context_length, sources, versions, name)


def _identity(source: JobSource, cache_folder: Path) -> dict[str, object]:
    """What tells a source from another. Its format, where it is looked up, follows from its files."""
    return {
        "files": [asdict(fingerprint(uri, cache_folder)) for uri in source.uris],
        "is_validation": source.is_validation,
        "weight": source.weight,
        "rows": source.dataset.model_dump(mode="json", include={"format", "columns"}),
    }

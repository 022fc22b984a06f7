"""The prepared dataset of a run, searched for given examples.

In: a run's address, its job and its checkpoint. Out: `StoredExamples`, or None where the dataset is not to be reached
any more. It reads only: a damaged dataset is left for the next training to make anew.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmforge.checkpoint.find import CheckpointAddress
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.dataset.prepared import DATA_FOLDER, PreparedDataset
from llmforge.dataset.shards import SampleReader
from llmforge.dataset.stats import DatasetStats
from llmforge.errors import DataError, StorageError
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import read_manifest
from llmforge.storage.uri import is_s3, local_path

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class StoredExamples:
    """What a run was trained and validated on, as ids."""

    stats: DatasetStats
    prepared_at: datetime
    """In UTC, by the clock of the storage."""
    readers: tuple[SampleReader, ...]
    """Of the validation split, where there is one, and of the training split."""

    def is_older_than(self, uri: str) -> bool:
        """Whether a file of this machine was written after the data were prepared; of an object that is not known."""
        if is_s3(uri):
            return False
        status = local_path(uri).stat()
        return datetime.fromtimestamp(status.st_mtime, tz=timezone.utc) > self.prepared_at

    def find(self, wanted: Collection[bytes]) -> set[bytes]:
        """Which of the wanted examples (the bytes of their ids) are stored."""
        found: set[bytes] = set()
        for example in self._examples():
            key = example.tobytes()
            if key in wanted:
                found.add(key)
                if len(found) == len(wanted):
                    break
        return found

    def nearest(self, ids: Ids) -> Ids:
        """The stored example that begins like `ids` for longest."""
        best, best_length = np.zeros(0, np.int32), -1
        for example in self._examples():
            shorter = min(len(ids), len(example))
            differs = np.flatnonzero(ids[:shorter] != example[:shorter])
            length = int(differs[0]) if len(differs) else shorter
            if length > best_length:
                best, best_length = example, length
        return best

    def _examples(self) -> Iterator[Ids]:
        for reader in self.readers:
            for index in range(len(reader)):
                sample = reader[index]
                yield from np.split(sample.input_ids, np.cumsum(sample.example_lengths)[:-1])


def read_stats(uri: str, job: JobConfig, checkpoint: CheckpointInfo) -> DatasetStats | None:
    """What the data stage counted; None where the dataset is not to be reached any more."""
    prefix = checkpoint.metadata.get("data")
    if not isinstance(prefix, str):
        return None
    for place in _places(uri, job):
        try:
            manifest = read_manifest(open_storage(place), prefix)
        except StorageError:
            continue
        if manifest is not None:
            return DatasetStats.model_validate(manifest.metadata["stats"])
    return None


def stored_examples(uri: str, job: JobConfig, checkpoint: CheckpointInfo, cache_folder: Path) -> StoredExamples | None:
    """The examples of the prepared dataset; None where it is not to be reached any more, or is damaged."""
    stats = read_stats(uri, job, checkpoint)
    if stats is None:
        return None
    prefix = str(checkpoint.metadata["data"])
    prepared = PreparedDataset(prefix.removeprefix(f"{DATA_FOLDER}/"), stats, was_cached=True)
    for place in _places(uri, job):
        try:
            storage = open_storage(place)
            readers = [prepared.open("train", storage, cache_folder)]
            if stats.valid is not None:
                readers.insert(0, prepared.open("valid", storage, cache_folder))
            prepared_at = max(file.modified_at for file in storage.list(prefix))
        except (DataError, StorageError):
            continue
        return StoredExamples(stats, prepared_at, tuple(readers))
    return None


def _places(uri: str, job: JobConfig) -> list[str]:
    """Where the prepared datasets of a run may lie: beside it, and where its job says."""
    run = CheckpointAddress.of(uri).run_uri.rstrip("/")
    return [run.rpartition("/")[0], job.output_dir]

"""Log-probabilities of a reference model beside a prepared dataset of pairs: one number for each answer.

A committed folder of its own, named by what decides the numbers, so that all epochs and all runs with the same data and
the same reference model share it, and the prepared dataset stays as it is. Who computes the numbers is not known here.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmforge.dataset.prepared import DATA_FOLDER, PreparedDataset
from llmforge.dataset.shards import Split
from llmforge.storage.base import Storage
from llmforge.storage.manifest import AlreadyCommittedError, check_folder, commit_folder, read_manifest, remove_folder
from llmforge.storage.types import DamagedError

REFERENCE_VERSION = 1
"""Raised whenever the same inputs would give other numbers."""
SCHEMA = pa.schema([("reference", pa.list_(pa.float32()))])


def reference_name(prepared: PreparedDataset, decides: Mapping[str, object]) -> str:
    """The name of the folder; `decides` is all that tells the reference model and how it computes from others."""
    text = json.dumps({"version": REFERENCE_VERSION, "data": prepared.name, **decides}, sort_keys=True)
    return f"{prepared.name}-reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def has_reference(storage: Storage, name: str) -> bool:
    """Whether the folder is there, whole. One that is damaged is removed, so that it is made anew."""
    prefix = f"{DATA_FOLDER}/{name}"
    try:
        manifest = read_manifest(storage, prefix)
        if manifest is not None:
            check_folder(storage, prefix, manifest)
    except DamagedError:
        remove_folder(storage, prefix)
        return False
    return manifest is not None


def commit_reference(storage: Storage, name: str, values: Mapping[Split, Sequence[NDArray[np.float32]]]) -> None:
    """Store the numbers of all answers, sample by sample, in the order of the shards."""
    with tempfile.TemporaryDirectory(prefix="llmforge-reference-") as folder:
        for split, samples in values.items():
            write_reference(Path(folder) / f"{split}-reference.arrow", samples)
        try:
            commit_folder(storage, f"{DATA_FOLDER}/{name}", Path(folder), metadata={})
        except AlreadyCommittedError:  # another job has just computed the same
            return


def write_reference(path: Path, samples: Sequence[NDArray[np.float32]]) -> None:
    """One file with the numbers of the answers of every sample."""
    table = pa.table({"reference": pa.array(list(samples), SCHEMA.field("reference").type)}, schema=SCHEMA)
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        writer.write_table(table)

"""What the weights of a checkpoint went through before its own run: the checkpoints that trainings started from.

It stands in every checkpoint as plain data, so it holds when those are removed. In: the address that a training starts
from. Out: a tuple of `Ancestor`, the oldest first, empty for what no run of llmforge has made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from llmforge.checkpoint.exported import EXPORT_RECORD, read_export_record
from llmforge.checkpoint.find import CheckpointAddress
from llmforge.checkpoint.records import CheckpointInfo
from llmforge.checkpoint.survey import prefix_of, read_info, uri_of
from llmforge.storage.base import Storage, open_storage, read_bytes
from llmforge.storage.manifest import MANIFEST_NAME
from llmforge.storage.uri import join_key

LINEAGE = "lineage"
"""Its key in the metadata of a checkpoint."""


class Ancestor(BaseModel):
    """A checkpoint that a training started from."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    run: str
    checkpoint: str
    step: int
    uri: str
    """Where it lay then: the folder of the checkpoint, or that of an export of it."""
    manifest_sha256: str
    """Of its `manifest.json`, or of an export's `llmforge.json`; in these stands the SHA-256 of every file."""


Lineage = tuple[Ancestor, ...]
_LINEAGE = TypeAdapter(Lineage)


def lineage_of(info: CheckpointInfo) -> Lineage:
    """What a checkpoint tells of its ancestors; nothing where an older llmforge wrote it."""
    return _LINEAGE.validate_python(info.metadata.get(LINEAGE, []))


def lineage_json(lineage: Lineage) -> list[JsonValue]:
    """As it stands in the metadata of a checkpoint."""
    return [ancestor.model_dump() for ancestor in lineage]


def lineage_from(addresses: Iterable[str]) -> Lineage:
    """The ancestors of what starts from these addresses: base weights, and an adapter over them.

    What is neither the folder of a complete checkpoint in its run nor an export counts for nothing.
    """
    found: dict[Ancestor, None] = {}
    for uri in addresses:
        address = CheckpointAddress.of(uri)
        if address.name is None:
            found |= dict.fromkeys(_of_export(open_storage(uri)))
        else:
            found |= dict.fromkeys(_of_checkpoint(open_storage(address.run_uri), address.name))
    return tuple(found)


def lineage_text(lineage: Lineage, *names: str) -> str:
    """`sft (step 120) -> dpo (step 40)`; `names` come last."""
    return " -> ".join([*(f"{ancestor.run} (step {ancestor.step})" for ancestor in lineage), *names])


def _of_checkpoint(storage: Storage, name: str) -> Sequence[Ancestor]:
    info = read_info(storage, name)
    if info is None:
        return ()
    run = storage.root_uri.rpartition("/")[2]
    return _with_itself(info, run, uri_of(storage, name), read_bytes(storage, join_key(prefix_of(name), MANIFEST_NAME)))


def _of_export(storage: Storage) -> Sequence[Ancestor]:
    record = read_export_record(storage)
    if record is None:
        return ()
    return _with_itself(record.info, str(record.job.run_name), storage.root_uri, read_bytes(storage, EXPORT_RECORD))


def _with_itself(info: CheckpointInfo, run: str, uri: str, manifest: bytes) -> Sequence[Ancestor]:
    checksum = hashlib.sha256(manifest).hexdigest()
    itself = Ancestor(run=run, checkpoint=info.name, step=info.step, uri=uri, manifest_sha256=checksum)
    return (*lineage_of(info), itself)

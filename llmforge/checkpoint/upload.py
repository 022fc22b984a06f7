"""One rank's files on their way into a checkpoint.

An upload that was cut short, and is done again by whichever process, sends no large file twice: each rank records what
has arrived. The record is also the first thing it writes, so that what it leaves is seen however soon it dies.
"""

from __future__ import annotations

import threading
from pathlib import Path

from llmforge.checkpoint.names import rank_manifest_name, upload_record_name
from llmforge.checkpoint.records import CheckpointInfo, RankRecord
from llmforge.checkpoint.survey import CheckpointFolder, list_folder, prefix_of, read_info, uri_of
from llmforge.errors import CheckpointError
from llmforge.storage.base import Storage
from llmforge.storage.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    folder_records,
    problem_of,
    read_manifest,
    upload_files,
    write_manifest,
)
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import join_key

RECORDED_FROM_BYTES = 8 << 20
"""To send a smaller file again takes no longer than to record it."""


def upload_part(storage: Storage, name: str, local_folder: Path, rank: RankRecord) -> None:
    """Upload the files of one rank, then its manifest; what is there already is not sent again.

    Raises `CheckpointError` when the checkpoint is complete with other files.
    """
    folder = list_folder(storage, name)
    info = read_info(storage, name) if MANIFEST_NAME in folder.files else None
    if info is not None:
        _refuse_other_files(storage, info, local_folder)
        return
    prefix = prefix_of(name)
    manifest_key = join_key(prefix, rank_manifest_name(rank.rank))
    metadata = rank.model_dump(mode="json")
    if rank.rank in folder.uploaded_ranks:
        if _is_done(storage, folder, local_folder, rank):
            return
        storage.delete(manifest_key)
    progress = _Progress(storage, join_key(prefix, upload_record_name(rank.rank)), rank)
    stored = _stored(storage, folder, local_folder, rank.rank)
    progress.begin(stored)
    records = upload_files(storage, prefix, local_folder, stored=stored, on_upload=progress.add)
    write_manifest(storage, manifest_key, records, metadata)
    storage.delete(progress.key)


class _Progress:
    """The record of the large files that have arrived; several threads may add to it."""

    def __init__(self, storage: Storage, key: str, rank: RankRecord) -> None:
        self.key = key
        self._storage = storage
        self._metadata = rank.model_dump(mode="json")
        self._arrived: list[FileRecord] = []
        self._lock = threading.Lock()

    def begin(self, stored: tuple[FileRecord, ...]) -> None:
        self._arrived += stored
        self._write()

    def add(self, record: FileRecord) -> None:
        if record.size_bytes >= RECORDED_FROM_BYTES:
            with self._lock:
                self._arrived.append(record)
                self._write()

    def _write(self) -> None:
        write_manifest(self._storage, self.key, self._arrived, self._metadata)


def _stored(storage: Storage, folder: CheckpointFolder, local_folder: Path, rank: int) -> tuple[FileRecord, ...]:
    """What an earlier upload has brought of these very bytes, by its own record and by what the storage lists."""
    if upload_record_name(rank) not in folder.files:
        return ()
    recorded = _read(storage, folder.name, upload_record_name(rank))
    return tuple(
        record
        for record in (recorded.files if recorded else ())
        if folder.holds(record) and problem_of(local_folder / record.path, record) is None
    )


def _is_done(storage: Storage, folder: CheckpointFolder, local_folder: Path, rank: RankRecord) -> bool:
    """Whether the manifest of the rank tells of the files in the local folder, and the storage lists them."""
    earlier = _read(storage, folder.name, rank_manifest_name(rank.rank))
    return (
        earlier is not None
        and earlier.metadata == rank.model_dump(mode="json")
        and earlier.files == folder_records(local_folder)
        and all(map(folder.holds, earlier.files))
    )


def _read(storage: Storage, name: str, file_name: str) -> Manifest | None:
    """What an earlier upload has recorded; a record that cannot be read only costs another upload."""
    try:
        return read_manifest(storage, prefix_of(name), file_name)
    except DamagedError:
        return None


def _refuse_other_files(storage: Storage, info: CheckpointInfo, local_folder: Path) -> None:
    if not set(folder_records(local_folder)) <= set(info.files):
        raise CheckpointError(
            f"{uri_of(storage, info.name)}: is complete already, with other files than {local_folder}, and what is"
            " complete never changes. Save under the name of a later step or another attempt."
        )

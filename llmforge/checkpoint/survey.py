"""What stands in a run's folder `checkpoints`: which are complete, unfinished, damaged.

In: a storage. Out: the values of `records.py`. Nothing is written here. A folder that has not the name of a checkpoint
is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from llmforge.checkpoint.names import (
    DAMAGED_NAME,
    FOLDER,
    is_checkpoint_name,
    is_removal_mark,
    is_upload_record,
    rank_of_manifest,
    step_of,
)
from llmforge.checkpoint.records import (
    CheckpointInfo,
    DamagedCheckpoint,
    DamageRecord,
    RankRecord,
    UnfinishedCheckpoint,
    info_of,
)
from llmforge.storage.base import NotFoundError, Storage, StoredFile, read_bytes
from llmforge.storage.manifest import (
    MANIFEST_NAME,
    FileRecord,
    read_manifest,
)
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import join_key, join_uri


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint, as a listing shows them."""

    name: str
    files: Mapping[str, StoredFile]
    """By the path inside the folder."""

    @property
    def is_set_aside(self) -> bool:
        return DAMAGED_NAME in self.files

    @property
    def is_being_removed(self) -> bool:
        return any(map(is_removal_mark, self.files))

    @property
    def uploaded_ranks(self) -> frozenset[int]:
        """The ranks whose manifest is there."""
        return frozenset(rank for rank in map(rank_of_manifest, self.files) if rank is not None)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    @property
    def newest_at(self) -> datetime:
        return max(file.modified_at for file in self.files.values())

    def holds(self, record: FileRecord) -> bool:
        """Whether a file is there with its size."""
        found = self.files.get(record.path)
        return found is not None and found.size_bytes == record.size_bytes

    def problems(self, info: CheckpointInfo) -> list[str]:
        """One line for each file of the checkpoint that is not there with its size."""
        sizes = {path: file.size_bytes for path, file in self.files.items()}
        return [
            f"{record.path}: {sizes.get(record.path, 'no')} bytes, not {record.size_bytes}"
            for record in info.files
            if not self.holds(record)
        ]


@dataclass(frozen=True)
class Survey:
    """Every checkpoint of a run, each list with the newest last."""

    complete: tuple[CheckpointInfo, ...]
    """All of their files are there with their sizes."""
    unfinished: tuple[UnfinishedCheckpoint, ...]
    damaged: tuple[DamagedCheckpoint, ...]


def prefix_of(name: str) -> str:
    """The folder of a checkpoint below that of its run; `ValueError` for another name."""
    step_of(name)
    return join_key(FOLDER, name)


def uri_of(storage: Storage, name: str) -> str:
    """The address of a checkpoint's folder."""
    return join_uri(storage.root_uri, FOLDER, name)


def list_folders(storage: Storage) -> list[CheckpointFolder]:
    """All folders with the name of a checkpoint, by one listing, sorted by name."""
    found: dict[str, dict[str, StoredFile]] = {}
    for file in storage.list(FOLDER):
        _, name, *path = file.key.split("/")
        if path and is_checkpoint_name(name):
            found.setdefault(name, {})["/".join(path)] = file
    return [CheckpointFolder(name, files) for name, files in found.items()]


def list_folder(storage: Storage, name: str) -> CheckpointFolder:
    """The folder of one checkpoint, empty when there is none."""
    prefix = prefix_of(name)
    return CheckpointFolder(name, {file.key.removeprefix(f"{prefix}/"): file for file in storage.list(prefix)})


def read_info(storage: Storage, name: str) -> CheckpointInfo | None:
    """What the manifest of a checkpoint says; None when there is none. Raises `DamagedError` for another manifest."""
    manifest = read_manifest(storage, prefix_of(name))
    if manifest is None:
        return None
    try:
        return info_of(name, manifest)
    except ValidationError as error:
        raise DamagedError(f"{uri_of(storage, name)}: its manifest is not that of a checkpoint: {error}") from error


def read_committed(storage: Storage, folder: CheckpointFolder) -> CheckpointInfo | None:
    """The checkpoint in a folder that was listed; None unless it is committed. Raises `DamagedError` as `read_info`.

    One that somebody has begun to remove counts as long as all of it is there: who began may have let it be.
    """
    if MANIFEST_NAME not in folder.files or folder.is_set_aside:
        return None
    info = read_info(storage, folder.name)
    if info is not None and folder.is_being_removed and folder.problems(info):
        return None
    return info


def survey(storage: Storage) -> Survey:
    """Look at every checkpoint of a run."""
    complete, unfinished, damaged = [], [], []
    for folder in list_folders(storage):
        found = _judge(storage, folder)
        match found:
            case CheckpointInfo():
                complete.append(found)
            case UnfinishedCheckpoint():
                unfinished.append(found)
            case DamagedCheckpoint():
                damaged.append(found)
    return Survey(tuple(sorted(complete, key=lambda info: info.age_key)), tuple(unfinished), tuple(damaged))


def list_unfinished(storage: Storage) -> list[UnfinishedCheckpoint]:
    """Only those; complete ones are told by their names and cost no request."""
    found = []
    for folder in list_folders(storage):
        if folder.is_set_aside or (MANIFEST_NAME in folder.files and not folder.is_being_removed):
            continue
        judged = _judge(storage, folder)
        if isinstance(judged, UnfinishedCheckpoint):
            found.append(judged)
    return found


def _judge(
    storage: Storage, folder: CheckpointFolder
) -> CheckpointInfo | UnfinishedCheckpoint | DamagedCheckpoint | None:
    """What a folder is; None when it went away meanwhile."""
    if folder.is_set_aside:
        return _set_aside(storage, folder)
    try:
        info = read_committed(storage, folder)
        if info is None:
            return _unfinished(storage, folder)
        if folder.problems(info):
            # A listing takes its time, and may have passed a file before it came.
            again = list_folder(storage, folder.name)
            problems = again.problems(info)
            if problems:
                is_gone = again.is_being_removed or read_info(storage, folder.name) is None
                return None if is_gone else _damaged(folder, "; ".join(problems), info)
    except DamagedError as error:
        return _damaged(folder, str(error), None)
    return info


def _unfinished(storage: Storage, folder: CheckpointFolder) -> UnfinishedCheckpoint:
    # Nobody can use what is being removed, so no rank counts.
    ranks = frozenset() if folder.is_being_removed else folder.uploaded_ranks
    return UnfinishedCheckpoint(
        name=folder.name,
        step=step_of(folder.name),
        world_size=_world_size(storage, folder),
        uploaded_ranks=ranks,
        num_files=len(folder.files),
        size_bytes=folder.size_bytes,
        newest_at=folder.newest_at,
        is_being_removed=folder.is_being_removed,
    )


def _world_size(storage: Storage, folder: CheckpointFolder) -> int | None:
    """As the first rank says that has begun; None where none has, or it cannot be read."""
    begun = sorted(path for path in folder.files if rank_of_manifest(path) is not None or is_upload_record(path))
    if folder.is_being_removed or not begun:
        return None
    try:
        manifest = read_manifest(storage, prefix_of(folder.name), begun[0])
        return None if manifest is None else RankRecord.model_validate(manifest.metadata).world_size
    except (DamagedError, ValidationError):
        return None


def _set_aside(storage: Storage, folder: CheckpointFolder) -> DamagedCheckpoint | None:
    try:
        data = read_bytes(storage, join_key(prefix_of(folder.name), DAMAGED_NAME))
        record = DamageRecord.model_validate_json(data)
        return _damaged(folder, record.reason, info_of(folder.name, record.manifest))
    except NotFoundError:
        return None
    except ValidationError:
        return _damaged(folder, f"it was set aside; {DAMAGED_NAME} cannot be read, so the reason is not known", None)


def _damaged(folder: CheckpointFolder, reason: str, info: CheckpointInfo | None) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        name=folder.name,
        step=step_of(folder.name),
        reason=reason,
        size_bytes=folder.size_bytes,
        newest_at=folder.newest_at,
        info=info,
        is_set_aside=folder.is_set_aside,
    )

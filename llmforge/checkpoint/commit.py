"""How a checkpoint comes to exist, and how a damaged one ceases to.

`manifest.json` is written last, once all ranks have uploaded. Any process may write it, several at once, and even one
that was taken for dead and whose files are being removed. So who has written it looks once more: only what nobody has
begun to remove by then is reported as committed. Who removes puts down a mark first and then looks for the manifest
(`removal.py`); of the two at least one sees the other.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

from pydantic import ValidationError

from llmforge.checkpoint.names import DAMAGED_NAME, rank_manifest_name, step_of
from llmforge.checkpoint.records import CheckpointInfo, DamageRecord, RankRecord, info_of, manifest_of
from llmforge.checkpoint.survey import CheckpointFolder, list_folder, prefix_of, read_committed, read_info, uri_of
from llmforge.errors import CheckpointError
from llmforge.storage.base import ExistsError, Storage, write_bytes
from llmforge.storage.manifest import (
    MANIFEST_NAME,
    FileRecord,
    read_manifest,
    write_manifest,
)
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import join_key


def commit(storage: Storage, name: str) -> CheckpointInfo:
    """Make a checkpoint of what all ranks have uploaded; of one that is complete already, return it.

    Raises `CheckpointError` where a rank has not uploaded, where files are missing, and where it is being removed.
    """
    folder = list_folder(storage, name)
    _refuse_removed(storage, folder)
    try:
        existing = read_committed(storage, folder)
        if existing is not None:
            return existing
        written = _write(storage, _prepare(storage, folder))
    except DamagedError as error:
        raise CheckpointError(f"{error}\nSo {name} is not committed. Save again.") from error
    _check_still_there(storage, written)
    return written


def set_aside(storage: Storage, info: CheckpointInfo, reason: str) -> None:
    """Let a damaged checkpoint exist no longer: `damaged.json` is written, then its manifest deleted.

    One that is gone, or set aside already, is left as it is.
    """
    folder = list_folder(storage, info.name)
    if MANIFEST_NAME not in folder.files:
        return
    prefix = prefix_of(info.name)
    if not folder.is_set_aside:
        record = DamageRecord(reason=reason, set_aside_at=datetime.now(timezone.utc), manifest=manifest_of(info))
        write_bytes(storage, join_key(prefix, DAMAGED_NAME), record.model_dump_json(indent=1).encode())
    storage.delete(join_key(prefix, MANIFEST_NAME))


def _prepare(storage: Storage, folder: CheckpointFolder) -> CheckpointInfo:
    """The checkpoint that is to be, by the manifests of all ranks; all of its files are there."""
    first, records = _records_of_ranks(storage, folder)
    info = CheckpointInfo(
        name=folder.name,
        step=step_of(folder.name),
        world_size=first.world_size,
        committed_at=datetime.now(timezone.utc),
        metadata=first.training,
        files=tuple(records),
    )
    problems = list_folder(storage, folder.name).problems(info)
    if problems:
        raise CheckpointError(
            f"{uri_of(storage, folder.name)}: uploaded files are not all there, so the checkpoint is not committed:"
            f" {'; '.join(problems)}. Save again."
        )
    return info


def _write(storage: Storage, info: CheckpointInfo) -> CheckpointInfo:
    """Write the manifest, unless another process has been faster with the very same one."""
    manifest = manifest_of(info)
    key = join_key(prefix_of(info.name), MANIFEST_NAME)
    try:
        return info_of(info.name, write_manifest(storage, key, manifest.files, manifest.metadata, replace=False))
    except ExistsError as error:
        existing = read_info(storage, info.name)
        if existing is None or replace(existing, committed_at=info.committed_at) != info:
            raise CheckpointError(
                f"{uri_of(storage, info.name)}: another process has written its manifest, and for other files. No name"
                " may be used twice: save again."
            ) from error
        return existing


def _check_still_there(storage: Storage, info: CheckpointInfo) -> None:
    """Raise `CheckpointError` when somebody has begun to remove the checkpoint by now."""
    folder = list_folder(storage, info.name)
    problems = folder.problems(info)
    if problems:
        # The manifest came when files were gone already: it may not outlive the mark of who removes them.
        storage.delete(join_key(prefix_of(info.name), MANIFEST_NAME))
        raise CheckpointError(
            f"{uri_of(storage, info.name)}: was removed while it was committed: {'; '.join(problems)}. Its worker group"
            " was taken for dead: see whether another one is at work on this run."
        )
    _refuse_removed(storage, folder)


def _refuse_removed(storage: Storage, folder: CheckpointFolder) -> None:
    if folder.is_set_aside:
        raise CheckpointError(
            f"{uri_of(storage, folder.name)}: was set aside as damaged, so it is not committed again. {DAMAGED_NAME} in"
            " it says why."
        )
    if folder.is_being_removed:
        raise CheckpointError(
            f"{uri_of(storage, folder.name)}: is being removed, so it is not committed. Its worker group was taken for"
            " dead: see whether another one is at work on this run."
        )


def _records_of_ranks(storage: Storage, folder: CheckpointFolder) -> tuple[RankRecord, list[FileRecord]]:
    """Rank 0's record, and the files of all. Raises `CheckpointError` for missing ranks and a path that two brought."""
    first, own = _read_rank(storage, folder, 0, None)
    missing = sorted(set(range(first.world_size)) - folder.uploaded_ranks)
    if missing:
        raise _missing(storage, folder, missing, first.world_size)
    owners: dict[str, int] = {}
    records: list[FileRecord] = []
    for rank in range(first.world_size):
        _, files = (first, own) if rank == 0 else _read_rank(storage, folder, rank, first.world_size)
        for record in files:
            if record.path in owners:
                raise CheckpointError(
                    f"{uri_of(storage, folder.name)}: {record.path} was uploaded by rank {owners[record.path]} and by"
                    f" rank {rank}, and only one can be kept. Each rank needs file names of its own."
                )
            owners[record.path] = rank
            records.append(record)
    return first, sorted(records, key=lambda record: record.path)


def _read_rank(
    storage: Storage, folder: CheckpointFolder, rank: int, world_size: int | None
) -> tuple[RankRecord, tuple[FileRecord, ...]]:
    """What one rank has recorded; `world_size`: what it has to say of it."""
    manifest = read_manifest(storage, prefix_of(folder.name), rank_manifest_name(rank))
    if manifest is None:
        raise _missing(storage, folder, [rank], world_size)
    try:
        record = RankRecord.model_validate(manifest.metadata)
    except ValidationError as error:
        raise DamagedError(
            f"{uri_of(storage, folder.name)}: {rank_manifest_name(rank)} is not the manifest of a rank: {error}"
        ) from error
    if record.rank != rank or record.world_size != (world_size or record.world_size):
        raise DamagedError(
            f"{uri_of(storage, folder.name)}: {rank_manifest_name(rank)} is of rank {record.rank} of"
            f" {record.world_size}, not of rank {rank} of {world_size or record.world_size}"
        )
    return record, manifest.files


def _missing(storage: Storage, folder: CheckpointFolder, ranks: list[int], world_size: int | None) -> CheckpointError:
    of_all = "" if world_size is None else f" of {world_size}"
    return CheckpointError(
        f"{uri_of(storage, folder.name)}: rank {', '.join(map(str, ranks))}{of_all} has not uploaded its files, so the"
        " checkpoint is not committed. The log of that rank says why."
    )

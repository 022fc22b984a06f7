"""Where a worker group begins: what its predecessor left is brought to an end or removed, the newest checkpoint loaded.

Every function is collective: all ranks call it, and come to the same result. In: the store of the run, and what the
disk of each rank's node has kept. Out: the newest complete checkpoint as a local folder, or nothing.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from llmforge.checkpoint.names import step_of
from llmforge.checkpoint.staging import Staging
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore, UnfinishedCheckpoint
from llmforge.errors import CheckpointError
from llmforge.storage import files
from llmforge.storage.types import DamagedError
from llmforge.train.checkpoints import publish, upload_part

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Findings:
    """What one rank knows of saves that have not become checkpoints."""

    staged: tuple[tuple[str, int, int], ...]
    """Whole parts on its node: name, rank, and number of ranks that took part."""
    unfinished: tuple[UnfinishedCheckpoint, ...] = ()
    """In the storage; rank 0 looks."""
    newest_step: int = 0
    """Of the complete checkpoints."""


@dataclass(frozen=True)
class Adoption:
    """A save that can still be made a checkpoint."""

    name: str
    uploads: tuple[tuple[int, int], ...]
    """(rank that uploads, rank whose part it is)"""


@dataclass(frozen=True)
class Restored:
    """A checkpoint to go on from."""

    info: CheckpointInfo
    folder: Path
    is_copy: bool
    """Fetched for this purpose only."""

    def copy_to(self, file: Path) -> None:
        """Give `file` what the checkpoint has under its name, where it has that."""
        if (self.folder / file.name).is_file():
            shutil.copyfile(self.folder / file.name, file)

    def discard_copy(self) -> None:
        """Collective: once all ranks have loaded, the copies are not needed any more."""
        dist.barrier()
        if self.is_copy:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


def plan_adoption(findings: Sequence[Findings]) -> Adoption | None:
    """The newest save beyond the complete checkpoints of which every part is either uploaded or on some node's disk."""
    uploaded = {save.name: save for save in findings[0].unfinished}
    world_sizes = {name: size for found in findings for name, _, size in found.staged}
    world_sizes |= {save.name: save.world_size for save in uploaded.values() if save.world_size is not None}
    for name in sorted(world_sizes, key=lambda name: (step_of(name), name), reverse=True):
        if step_of(name) <= findings[0].newest_step:
            return None
        holders = {
            part: holder
            for holder, found in reversed(list(enumerate(findings)))
            for staged_name, part, _ in found.staged
            if staged_name == name
        }
        there = uploaded[name].uploaded_ranks if name in uploaded else frozenset()
        missing = [part for part in range(world_sizes[name]) if part not in there]
        if all(part in holders for part in missing):
            return Adoption(name, tuple((holders[part], part) for part in missing))
    return None


def finish_or_remove_leftovers(
    store: CheckpointStore, staging: Staging, is_dead: Callable[[str], bool], num_to_keep: int
) -> str | None:
    """Make a checkpoint of the newest save that a dead worker group has left whole; remove what else it has left.

    `is_dead` judges the attempt word of a save. Returns the name of what was made a checkpoint.
    """
    adopted = _adopt(store, staging, num_to_keep)
    dist.barrier()  # nobody needs the leftovers any more
    if dist.get_rank() == 0:
        for name in store.sweep(is_dead):
            logger.info("removed %s, which was never finished", name)
    staging.clear()
    dist.barrier()
    return adopted


def restore_newest(store: CheckpointStore, cache_folder: Path) -> Restored | None:
    """The newest complete checkpoint, verified, as a local folder; None where the run has none yet.

    One that is damaged is set aside with a warning, and the one before it taken. Raises `CheckpointError` where
    all of them are damaged.
    """
    damaged: list[str] = []
    while True:
        complete = from_rank_0(store.list)
        if not complete:
            if damaged:
                raise CheckpointError(
                    f"{store.storage.root_uri}: every checkpoint of the run is damaged: {', '.join(damaged)}. They are"
                    " set aside, each with the reason in its damaged.json. Start a new run under another run_name."
                )
            return None
        info = complete[-1]
        fetched = _fetch(store, info, cache_folder)
        everywhere = _gather(fetched)
        if any(one.is_gone for one in everywhere):
            continue
        problems = [one.damage for one in everywhere if one.damage is not None]
        if not problems:
            return Restored(info, fetched.folder, is_copy=cache_folder in fetched.folder.parents)
        damaged.append(info.name)
        if dist.get_rank() == 0:
            store.set_aside(info, problems[0])
        before = f"going on from {complete[-2].name}" if len(complete) > 1 else "there is none before it"
        logger.warning("checkpoint %s is damaged and set aside; %s\n%s", info.name, before, problems[0])
        dist.barrier()


def _adopt(store: CheckpointStore, staging: Staging, num_to_keep: int) -> str | None:
    parts = {(part.record.name, part.record.rank): part for part in staging.parts()}
    staged = tuple((part.record.name, part.record.rank, part.record.world_size) for part in parts.values())
    found = Findings(staged)
    if dist.get_rank() == 0:
        found = Findings(staged, tuple(store.unfinished()), max((info.step for info in store.list()), default=0))
    adoption = plan_adoption(_gather(found))
    if adoption is None:
        return None
    for uploader, part in adoption.uploads:
        if uploader == dist.get_rank():
            upload_part(store, staging, parts[adoption.name, part])
    dist.barrier()
    return from_rank_0(lambda: _commit(store, adoption.name, num_to_keep))


def _commit(store: CheckpointStore, name: str, num_to_keep: int) -> str | None:
    try:
        info = store.commit(name)
    except CheckpointError as error:  # files that were uploaded are gone again
        logger.warning("left out: %s", error)
        return None
    publish(store, info, num_to_keep)
    return name


@dataclass(frozen=True)
class _Fetched:
    """What came of fetching a checkpoint to a node."""

    folder: Path
    damage: str | None = None
    is_gone: bool = False
    """It was removed meanwhile, as a driver may do that has been taken for dead."""


def _fetch(store: CheckpointStore, info: CheckpointInfo, cache_folder: Path) -> _Fetched:
    """The ranks of a node fetch it once."""
    target = cache_folder / info.name
    with files.explained("write the folder", target), files.exclusive(cache_folder / f"{info.name}.lock"):
        try:
            return _Fetched(store.local_folder(info, target))
        except CheckpointError as error:
            damage = str(error.__cause__) if isinstance(error.__cause__, DamagedError) else None
            return _Fetched(target, damage, is_gone=damage is None)


def _gather(value: _Value) -> list[_Value]:
    """The values of all ranks."""
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast(list[_Value], values)


def from_rank_0(find: Callable[[], _Value]) -> _Value:
    """What rank 0 finds, on all ranks."""
    found: list[object] = [find() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return cast(_Value, found[0])

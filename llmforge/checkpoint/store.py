"""Checkpoints of one run: uploaded by all ranks, made visible by one, found, verified, and removed again.

A checkpoint is the folder `checkpoints/step-00000200-<attempt>/` below the run's own. Each rank uploads its files and
then a rank manifest; when all have, one process writes `manifest.json`, and only from then on the checkpoint exists.
Names are never used twice, so nothing visible is ever overwritten.

Plain files and numbers: what the files hold, and who waits for whom, is not known here.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from llmforge.checkpoint.commit import commit, set_aside
from llmforge.checkpoint.names import is_checkpoint_name
from llmforge.checkpoint.records import (
    CheckpointInfo,
    DamagedCheckpoint,
    RankRecord,
    UnfinishedCheckpoint,
    manifest_of,
    ranked,
)
from llmforge.checkpoint.removal import remove, sweep
from llmforge.checkpoint.survey import (
    Survey,
    list_folder,
    list_folders,
    list_unfinished,
    prefix_of,
    read_committed,
    read_info,
    survey,
    uri_of,
)
from llmforge.checkpoint.upload import upload_part
from llmforge.checkpoint.verify import find_problems
from llmforge.errors import CheckpointError
from llmforge.storage.base import NotFoundError, Storage, read_bytes, write_bytes
from llmforge.storage.manifest import (
    MANIFEST_NAME,
    FileRecord,
    check_folder,
    fetch_folder,
    local_folder,
)
from llmforge.storage.types import DamagedError

__all__ = ["CheckpointInfo", "CheckpointStore", "DamagedCheckpoint", "Survey", "UnfinishedCheckpoint", "ranked"]

Label = Literal["best", "latest"]

MAX_IDLE = timedelta(days=1)
"""No single file of a checkpoint takes so long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of the run whose folder is the root of `storage`. It has no state: any process may have one."""

    storage: Storage

    def upload_rank(
        self, name: str, local_folder: Path, rank: int, world_size: int, metadata: Mapping[str, JsonValue] = {}
    ) -> None:
        """Upload the files of one rank, then its rank manifest. No two ranks bring a file of the same path.

        A rank that was cut short may do so again, in another process too, and goes on where it was. The `metadata` of
        rank 0 becomes that of the checkpoint: whatever resume and inference need; `eval_loss` or `eval_score` in it
        ranks checkpoints for `retain` and "best". Raises `CheckpointError` when the checkpoint is complete with other
        files.
        """
        upload_part(
            self.storage, name, local_folder, RankRecord(rank=rank, world_size=world_size, training=dict(metadata))
        )

    def uploaded_ranks(self, name: str) -> frozenset[int]:
        """The ranks that have uploaded all of their files."""
        return list_folder(self.storage, name).uploaded_ranks

    def commit(self, name: str) -> CheckpointInfo:
        """Make the checkpoint exist, once every rank has uploaded; one that does is returned as it is.

        Raises `CheckpointError` where a rank has not uploaded, and where the checkpoint is being removed.
        """
        return commit(self.storage, name)

    def list(self) -> builtins.list[CheckpointInfo]:
        """All complete checkpoints, the newest last: by step, then by time of commit.

        One whose manifest cannot be read is left out with a warning, so that the others can still be used. Whether the
        files are what was written shows when they are fetched.
        """
        found: builtins.list[CheckpointInfo] = []
        for folder in list_folders(self.storage):
            try:
                info = read_committed(self.storage, folder)
            except DamagedError as error:
                logger.warning("left out: %s", error)
                continue
            if info is not None:
                found.append(info)
        return sorted(found, key=lambda info: info.age_key)

    def unfinished(self) -> builtins.list[UnfinishedCheckpoint]:
        """What saves have left that are at work or were cut short, sorted by name."""
        return list_unfinished(self.storage)

    def survey(self) -> Survey:
        """Every checkpoint in whatever state; of complete ones it is seen that all files have their sizes."""
        return survey(self.storage)

    def resolve(self, name: str) -> CheckpointInfo:
        """The checkpoint that "latest", "best" or the name of a folder means. Raises `CheckpointError`.

        The latest is the newest complete one, whatever the file `latest` says: a run may die between commit and label.
        The best is the one of the file `best` as long as that is complete, otherwise the first of `ranked`.
        """
        complete = self.list()
        by_name = {info.name: info for info in complete}
        if name == "latest" and complete:
            return complete[-1]
        if name == "best" and complete:
            return by_name.get(self._labelled("best") or "") or ranked(complete)[0]
        if name in by_name:
            return by_name[name]
        there = ", ".join(by_name) if by_name else "no complete checkpoint"
        raise CheckpointError(
            f"{uri_of(self.storage, '')}: no checkpoint {name!r}{self._state_of(name)}; there is {there}. Allowed are"
            " latest, best, and the name of a complete one."
        )

    def point(self, label: Label, name: str) -> None:
        """Write the small file `best` or `latest`, which tells people and other programs the name of a checkpoint."""
        if read_committed(self.storage, list_folder(self.storage, name)) is None:
            raise CheckpointError(
                f"{uri_of(self.storage, name)}: is not complete, so it cannot be called {label}. Commit it first."
            )
        write_bytes(self.storage, label, f"{name}\n".encode())

    def fetch(self, info: CheckpointInfo, target: Path, paths: Collection[str] | None = None) -> None:
        """Bring the files (`paths`: only these) to a local folder, each verified by size and SHA-256.

        Raises `CheckpointError` that names every file which is missing, cut or changed.
        """
        with self._explained(info):
            fetch_folder(self.storage, prefix_of(info.name), manifest_of(info), target, paths)

    def local_folder(self, info: CheckpointInfo, target: Path, paths: Collection[str] | None = None) -> Path:
        """A local folder with the verified files: where they lie if that is on this machine, else `target`."""
        with self._explained(info):
            return local_folder(self.storage, prefix_of(info.name), manifest_of(info), target, paths)

    def check(self, info: CheckpointInfo, paths: Collection[str]) -> None:
        """See that some of its files are there with their sizes; those of this machine are read whole.

        Errors as in `fetch`.
        """
        with self._explained(info):
            check_folder(self.storage, prefix_of(info.name), manifest_of(info), paths)

    def verify(
        self, info: CheckpointInfo, on_progress: Callable[[FileRecord], None] | None = None
    ) -> builtins.list[str]:
        """Read all bytes; one line for each file that is missing, cut or changed.

        `on_progress` is told each file once it has been read. Raises `CheckpointError` when the checkpoint was removed
        meanwhile.
        """
        problems = find_problems(self.storage, info, on_progress)
        if problems:
            self._refuse_removed(info)
        return problems

    def set_aside(self, info: CheckpointInfo, reason: str) -> None:
        """Let a damaged checkpoint exist no longer for any reader. What is left of it stays, with the reason beside it.

        `retain` removes that once there is a newer complete checkpoint.
        """
        set_aside(self.storage, info, reason)

    def retain(self, num_to_keep: int, protect: Collection[str] = ()) -> builtins.list[str]:
        """Remove checkpoints except the `num_to_keep` best, the latest and the protected; returns their names.

        A checkpoint that lacks files counts for nothing and is left alone, unless it was set aside: then it goes once a
        newer one is complete. Unfinished ones are left alone too: another process may be at work on them.
        """
        found = survey(self.storage)
        complete = found.complete
        kept = {info.name for info in [*ranked(complete)[:num_to_keep], *complete[-1:]]} | set(protect)
        removed = [info.name for info in complete if info.name not in kept]
        removed += [
            damaged.name
            for damaged in found.damaged
            if damaged.name not in kept and any(_replaces(info, damaged) for info in complete)
        ]
        for name in removed:
            remove(self.storage, name)
        return removed

    def sweep(self, is_dead: Callable[[str], bool], max_idle: timedelta = MAX_IDLE) -> builtins.list[str]:
        """Remove what saves have left unfinished whose attempt word `is_dead`, or to which nothing was added so long.

        Time is that of the storage's clock. Complete ones, those set aside, and folders whose names no llmforge has
        made are left alone; so is what is committed at this very moment. Returns the names.
        """
        return sweep(self.storage, is_dead, max_idle)

    @contextmanager
    def _explained(self, info: CheckpointInfo) -> Iterator[None]:
        """Name the other checkpoints where this one turns out to be damaged."""
        try:
            yield
        except DamagedError as error:
            self._refuse_removed(info)
            others = [other.name for other in self.list() if other.name != info.name]
            advice = f"other checkpoints: {', '.join(others)}" if others else "there is no other checkpoint"
            raise CheckpointError(f"damaged checkpoint: {error}\n({advice})") from error

    def _refuse_removed(self, info: CheckpointInfo) -> None:
        """Raise `CheckpointError` when the checkpoint is not there any more."""
        folder = list_folder(self.storage, info.name)
        if folder.is_being_removed or read_info(self.storage, info.name) is None:
            what = "set aside as damaged" if folder.is_set_aside else "removed"
            raise CheckpointError(
                f"{uri_of(self.storage, info.name)}: was {what} while it was read. Take another checkpoint."
            )

    def _state_of(self, name: str) -> str:
        """Why a checkpoint that somebody named is not among the complete ones, as far as that can be told."""
        folder = list_folder(self.storage, name) if is_checkpoint_name(name) else None
        if folder is None or not folder.files:
            return ""
        if folder.is_set_aside:
            return " (it was set aside as damaged)"
        return " (its manifest cannot be read)" if MANIFEST_NAME in folder.files else " (it is unfinished)"

    def _labelled(self, label: Label) -> str | None:
        try:
            return read_bytes(self.storage, label).decode(errors="replace").strip()
        except NotFoundError:
            return None


def _replaces(info: CheckpointInfo, damaged: DamagedCheckpoint) -> bool:
    """Whether nobody needs what was set aside any more, now that there is `info`."""
    if not damaged.is_set_aside:
        return False
    if damaged.info is None:
        return damaged.step < info.step
    return damaged.info.age_key < info.age_key

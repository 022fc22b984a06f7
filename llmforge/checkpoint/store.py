"""Checkpoints of one run: uploaded by all ranks, made visible by one, found, verified, and removed again.

A checkpoint is the folder `checkpoints/step-00000200-<attempt>/` below the run's own. Each rank uploads its files and
then a rank manifest; when all have, one process writes `manifest.json`, and only from then on the checkpoint exists.
Its removal begins with that file. Names are never used twice, so nothing visible is ever overwritten.

Plain files and numbers: what the files hold, and who waits for whom, is not known here.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from llmforge.checkpoint.names import FOLDER, is_checkpoint_name, rank_manifest_name, step_of
from llmforge.errors import CheckpointError
from llmforge.storage.base import NotFoundError, Storage, read_bytes, write_bytes
from llmforge.storage.manifest import (
    MANIFEST_NAME,
    DamagedError,
    FileRecord,
    Manifest,
    fetch_folder,
    local_folder,
    read_manifest,
    remove_folder,
    upload_files,
    write_manifest,
)
from llmforge.storage.uri import join_key, join_uri

Label = Literal["best", "latest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """One complete checkpoint."""

    name: str
    step: int
    world_size: int
    """Ranks that wrote it."""
    committed_at: datetime
    """In UTC, by the clock of the process that committed it."""
    metadata: dict[str, JsonValue]
    """What training gave to `commit`; numbers that are not finite come back as None."""
    files: tuple[FileRecord, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(record.size_bytes for record in self.files)

    @property
    def eval_loss(self) -> float | None:
        """The validation loss in the metadata; None when it was not measured or is not finite."""
        loss = self.metadata.get("eval_loss")
        return float(loss) if isinstance(loss, int | float) else None


class _CommitRecord(BaseModel):
    """The metadata in the manifest of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    step: int
    world_size: int
    committed_at: datetime
    training: dict[str, JsonValue]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of the run whose folder is the root of `storage`. It has no state: any process may have one."""

    storage: Storage

    def upload_rank(self, name: str, local_folder: Path, rank: int) -> None:
        """Upload the files of one rank, then its rank manifest. No two ranks bring a file of the same path.

        A rank that was cut short may do so again. Raises `CheckpointError` for a checkpoint that is complete already.
        """
        prefix = _prefix(name)
        self._refuse_complete(name)
        records = upload_files(self.storage, prefix, local_folder)
        write_manifest(self.storage, join_key(prefix, rank_manifest_name(rank)), records, {"rank": rank})

    def commit(self, name: str, world_size: int, metadata: Mapping[str, JsonValue]) -> CheckpointInfo:
        """Make the checkpoint exist, once every rank has uploaded. Raises `CheckpointError` where one has not.

        `metadata`: whatever resume and inference need; `eval_loss` in it ranks checkpoints for `retain` and "best".
        """
        prefix = _prefix(name)
        self._refuse_complete(name)
        records = self._records_of_ranks(name, world_size)
        self._check_present(name, records)
        record = _CommitRecord(
            step=step_of(name),
            world_size=world_size,
            committed_at=datetime.now(timezone.utc),
            training=dict(metadata),
        )
        key = join_key(prefix, MANIFEST_NAME)
        return _info(name, write_manifest(self.storage, key, records, record.model_dump(mode="json")))

    def list(self) -> builtins.list[CheckpointInfo]:
        """All complete checkpoints, the newest last: by step, then by time of commit.

        One whose manifest cannot be read is left out with a warning, so that the others can still be used.
        """
        found: builtins.list[CheckpointInfo] = []
        for name in self._names_with_manifest():
            try:
                info = self._read(name)
            except DamagedError as error:
                logger.warning("left out: %s", error)
                continue
            if info is not None:
                found.append(info)
        return sorted(found, key=lambda info: (info.step, info.committed_at))

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
            f"{self._uri('')}: no checkpoint {name!r}; there is {there}. Allowed are latest, best, and the name of a"
            " complete one."
        )

    def point(self, label: Label, name: str) -> None:
        """Write the small file `best` or `latest`, which tells people and other programs the name of a checkpoint."""
        if self._read(name) is None:
            raise CheckpointError(
                f"{self._uri(name)}: is not complete, so it cannot be called {label}. Commit it first."
            )
        write_bytes(self.storage, label, f"{name}\n".encode())

    def fetch(self, info: CheckpointInfo, target: Path, paths: Collection[str] | None = None) -> None:
        """Bring the files (`paths`: only these) to a local folder, each verified by size and SHA-256.

        Raises `CheckpointError` that names every file which is missing, cut or changed.
        """
        with self._explained(info):
            fetch_folder(self.storage, _prefix(info.name), Manifest(files=info.files), target, paths)

    def local_folder(self, info: CheckpointInfo, target: Path, paths: Collection[str] | None = None) -> Path:
        """A local folder with the verified files: where they lie if that is on this machine, else `target`."""
        with self._explained(info):
            return local_folder(self.storage, _prefix(info.name), Manifest(files=info.files), target, paths)

    @contextmanager
    def _explained(self, info: CheckpointInfo) -> Iterator[None]:
        """Name the other checkpoints where this one turns out to be damaged."""
        try:
            yield
        except DamagedError as error:
            others = [other.name for other in self.list() if other.name != info.name]
            advice = f"other checkpoints: {', '.join(others)}" if others else "there is no other checkpoint"
            raise CheckpointError(f"damaged checkpoint: {error}\n({advice})") from error

    def retain(self, num_to_keep: int, protect: Collection[str] = ()) -> builtins.list[str]:
        """Remove complete checkpoints except the `num_to_keep` best, the latest and the protected; returns their names.

        Unfinished ones are left alone: another process may be at work on them.
        """
        complete = self.list()
        kept = {info.name for info in [*ranked(complete)[:num_to_keep], *complete[-1:]]} | set(protect)
        removed = [info.name for info in complete if info.name not in kept]
        for name in removed:
            remove_folder(self.storage, _prefix(name))
        return removed

    def _names_with_manifest(self) -> builtins.list[str]:
        """Folders directly below `checkpoints` that have a commit record."""
        paths = [file.key.split("/") for file in self.storage.list(FOLDER)]
        return [
            path[1] for path in paths if len(path) == 3 and path[2] == MANIFEST_NAME and is_checkpoint_name(path[1])
        ]

    def _read(self, name: str) -> CheckpointInfo | None:
        manifest = read_manifest(self.storage, _prefix(name))
        if manifest is None:
            return None
        try:
            return _info(name, manifest)
        except ValidationError as error:
            raise DamagedError(f"{self._uri(name)}: its manifest is not that of a checkpoint: {error}") from error

    def _refuse_complete(self, name: str) -> None:
        if read_manifest(self.storage, _prefix(name)) is not None:
            raise CheckpointError(
                f"{self._uri(name)}: is complete already, and what is complete never changes. Save under the name of a"
                " later step or another attempt."
            )

    def _records_of_ranks(self, name: str, world_size: int) -> builtins.list[FileRecord]:
        """The files of all ranks. Raises `CheckpointError` for missing ranks and for a path that two ranks brought."""
        manifests = {
            rank: read_manifest(self.storage, _prefix(name), rank_manifest_name(rank)) for rank in range(world_size)
        }
        missing = [str(rank) for rank, manifest in manifests.items() if manifest is None]
        if missing:
            raise CheckpointError(
                f"{self._uri(name)}: rank {', '.join(missing)} of {world_size} has not uploaded its files, so the"
                " checkpoint is not committed. The log of that rank says why."
            )
        owners: dict[str, int] = {}
        records: builtins.list[FileRecord] = []
        for rank, manifest in manifests.items():
            for record in manifest.files if manifest else ():
                if record.path in owners:
                    raise CheckpointError(
                        f"{self._uri(name)}: {record.path} was uploaded by rank {owners[record.path]} and by rank"
                        f" {rank}, and only one can be kept. Each rank needs file names of its own."
                    )
                owners[record.path] = rank
                records.append(record)
        return sorted(records, key=lambda record: record.path)

    def _check_present(self, name: str, records: Collection[FileRecord]) -> None:
        """Raise `CheckpointError` unless the storage shows every file with its size."""
        prefix = _prefix(name)
        sizes = {file.key: file.size_bytes for file in self.storage.list(prefix)}
        problems = [
            f"{record.path}: {sizes.get(join_key(prefix, record.path), 'no')} bytes, not {record.size_bytes}"
            for record in records
            if sizes.get(join_key(prefix, record.path)) != record.size_bytes
        ]
        if problems:
            raise CheckpointError(
                f"{self._uri(name)}: uploaded files are not all there, so the checkpoint is not committed:"
                f" {'; '.join(problems)}. Save again."
            )

    def _labelled(self, label: Label) -> str | None:
        try:
            return read_bytes(self.storage, label).decode(errors="replace").strip()
        except NotFoundError:
            return None

    def _uri(self, name: str) -> str:
        return join_uri(self.storage.root_uri, FOLDER, name)


def ranked(checkpoints: Collection[CheckpointInfo]) -> list[CheckpointInfo]:
    """The best first: by validation loss, the newer of equals first; those without a loss after all others, by age."""
    newest_first = sorted(checkpoints, key=lambda info: (info.step, info.committed_at), reverse=True)
    return sorted(newest_first, key=lambda info: (info.eval_loss is None, info.eval_loss or 0.0))


def _prefix(name: str) -> str:
    step_of(name)
    return join_key(FOLDER, name)


def _info(name: str, manifest: Manifest) -> CheckpointInfo:
    record = _CommitRecord.model_validate(manifest.metadata)
    return CheckpointInfo(
        name=name,
        step=record.step,
        world_size=record.world_size,
        committed_at=record.committed_at,
        metadata=record.training,
        files=manifest.files,
    )

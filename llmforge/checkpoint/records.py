"""What is known of checkpoints: the values that readers get, and the JSON that stands in a checkpoint's folder.

Pure: no storage here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from llmforge.storage.manifest import FileRecord, Manifest


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
    """What rank 0 gave to `upload_rank`; numbers that are not finite come back as None."""
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

    @property
    def rank(self) -> tuple[bool, float]:
        """Lower is better: by the `eval_score` in the metadata, where higher is better, or by the validation loss."""
        score = self.metadata.get("eval_score")
        return self.eval_loss is None, -float(score) if isinstance(score, int | float) else self.eval_loss or 0.0

    @property
    def age_key(self) -> tuple[int, datetime]:
        """Sorts checkpoints, the newest last."""
        return self.step, self.committed_at


@dataclass(frozen=True)
class UnfinishedCheckpoint:
    """What a save has left that is at work still, or was cut short, or is being removed."""

    name: str
    step: int
    world_size: int | None
    """Ranks that take part; None as long as no rank has begun, or when that cannot be known any more."""
    uploaded_ranks: frozenset[int]
    """Those whose files are all there."""
    num_files: int
    size_bytes: int
    newest_at: datetime
    """When its newest file was written, by the clock of the storage."""
    is_being_removed: bool = False
    """Somebody has begun to remove it, so it cannot be committed any more."""


@dataclass(frozen=True)
class DamagedCheckpoint:
    """One that was complete, and cannot be trusted."""

    name: str
    step: int
    reason: str
    size_bytes: int
    """Of what is there."""
    newest_at: datetime
    """When its newest file was written, by the clock of the storage."""
    info: CheckpointInfo | None
    """What it was; None when its manifest cannot be read."""
    is_set_aside: bool
    """By `CheckpointStore.set_aside`; else the next restore that meets it does so."""


class CommitRecord(BaseModel):
    """The metadata in the manifest of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    step: int
    world_size: int
    committed_at: datetime
    training: dict[str, JsonValue]


class RankRecord(BaseModel):
    """The metadata in the manifest of one rank."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    rank: int
    world_size: int
    training: dict[str, JsonValue]


class DamageRecord(BaseModel):
    """`damaged.json`: why a checkpoint was set aside, and its manifest, by which a person can take it back."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    format_version: Literal[1] = 1
    reason: str
    set_aside_at: datetime
    manifest: Manifest


def info_of(name: str, manifest: Manifest) -> CheckpointInfo:
    """The checkpoint that a manifest describes. Raises pydantic's `ValidationError` for another folder's."""
    record = CommitRecord.model_validate(manifest.metadata)
    return CheckpointInfo(
        name=name,
        step=record.step,
        world_size=record.world_size,
        committed_at=record.committed_at,
        metadata=record.training,
        files=manifest.files,
    )


def manifest_of(info: CheckpointInfo) -> Manifest:
    """The manifest that describes a checkpoint."""
    record = CommitRecord(
        step=info.step, world_size=info.world_size, committed_at=info.committed_at, training=info.metadata
    )
    return Manifest(files=info.files, metadata=record.model_dump(mode="json"))


def ranked(checkpoints: Collection[CheckpointInfo]) -> list[CheckpointInfo]:
    """The best first: by score or validation loss, the newer of equals first; those without at the end, by age."""
    newest_first = sorted(checkpoints, key=lambda info: info.age_key, reverse=True)
    return sorted(newest_first, key=lambda info: info.rank)

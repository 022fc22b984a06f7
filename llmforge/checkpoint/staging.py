"""Saves on their way: one rank's files on the disk of its own node, from where they are uploaded.

They outlive the process that wrote them. A worker group that starts after a failure finds what its predecessor left,
and can bring it to an end instead of losing it. Files only: what they hold is not known here.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from llmforge.checkpoint.names import is_checkpoint_name
from llmforge.storage import files

_MARK = "staged.json"
_FILES = "files"
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class PartRecord(BaseModel):
    """Stands beside the files of a part once all of them are written."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    name: str
    """Of the checkpoint."""
    rank: int
    world_size: int
    metadata: dict[str, JsonValue]
    """For the commit record."""
    boot_id: str
    """Of the system that ran: what the disk had not got yet is lost with the machine, and not with the process."""


@dataclass(frozen=True)
class StagedPart:
    """One rank's share of a checkpoint, whole, on this node."""

    record: PartRecord
    folder: Path
    """With its files and nothing else."""


@dataclass(frozen=True)
class Staging:
    """The parts of one run on this node, which all ranks of the node share."""

    root: Path

    @classmethod
    def of_run(cls, cache_folder: Path, run_uri: str) -> Staging:
        """Below the folder for caches, told apart by the address of the run."""
        return cls(cache_folder / "staging" / hashlib.sha256(run_uri.encode()).hexdigest()[:16])

    def part(self, name: str, rank: int) -> Path:
        """The folder of one part; made by `writing`."""
        return self.root / name / f"rank-{rank:05d}"

    @contextmanager
    def writing(self, name: str, rank: int) -> Iterator[Path]:
        """An empty folder for the files of a part. Raises `StorageError` where the disk refuses."""
        folder = self.part(name, rank) / _FILES
        with files.explained("write the checkpoint", folder):
            folder.mkdir(parents=True)
            yield folder

    def mark_whole(self, name: str, rank: int, world_size: int, metadata: dict[str, JsonValue]) -> StagedPart:
        """All files are written: from now on `parts` finds the part."""
        part = self.part(name, rank)
        record = PartRecord(name=name, rank=rank, world_size=world_size, metadata=metadata, boot_id=_boot_id())
        with files.explained("write the file", part / _MARK), files.atomic_target(part / _MARK) as partial:
            partial.write_text(record.model_dump_json())
        return StagedPart(record, part / _FILES)

    def parts(self) -> list[StagedPart]:
        """All whole parts that this node has kept since it was started, sorted by name and rank."""
        found = [_read(mark) for mark in self.root.glob(f"*/*/{_MARK}") if is_checkpoint_name(mark.parts[-3])]
        whole = [part for part in found if part is not None]
        return sorted(whole, key=lambda part: (part.record.name, part.record.rank))

    def remove(self, name: str, rank: int) -> None:
        """One part; one that is not there is as good as removed."""
        shutil.rmtree(self.part(name, rank), ignore_errors=True)
        for folder in (self.root / name, self.root):
            with suppress(OSError):  # other parts are in it
                folder.rmdir()

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.root, ignore_errors=True)


def _read(mark: Path) -> StagedPart | None:
    """None for one that another process is removing, or of an earlier start of the machine."""
    try:
        record = PartRecord.model_validate_json(mark.read_text())
    except (FileNotFoundError, ValidationError):
        return None
    return StagedPart(record, mark.parent / _FILES) if record.boot_id == _boot_id() else None


def _boot_id() -> str:
    return _BOOT_ID_FILE.read_text().strip()

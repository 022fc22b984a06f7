"""The record that an exported folder carries beside its Hugging Face files, so that llmforge can answer from it alone.

In: the job and the checkpoint that were exported. Out: `llmforge.json`, written behind all other files, and the same
values again. It does not know what the other files hold.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from llmforge.checkpoint.records import CheckpointInfo
from llmforge.config.base import first_problem
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml, job_to_yaml
from llmforge.errors import CheckpointError
from llmforge.storage.base import NotFoundError, Storage, join_uri, read_bytes, write_bytes
from llmforge.storage.manifest import FileRecord

EXPORT_RECORD = "llmforge.json"


class ExportedCheckpoint(BaseModel):
    """The checkpoint that was exported, without its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    name: str
    step: int
    world_size: int
    committed_at: datetime
    metadata: dict[str, JsonValue]


class ExportRecord(BaseModel):
    """What `llmforge.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    resolved_job: str
    """The resolved job as YAML text."""
    checkpoint: ExportedCheckpoint
    files: tuple[FileRecord, ...] = ()
    """What loading needs, with sizes and SHA-256: weights, tokenizer and configuration. The rest may be edited."""

    @classmethod
    def of(cls, job: JobConfig, checkpoint: CheckpointInfo, files: tuple[FileRecord, ...]) -> ExportRecord:
        """The record of an export; `files` are those of the exported folder."""
        origin = ExportedCheckpoint(
            name=checkpoint.name,
            step=checkpoint.step,
            world_size=checkpoint.world_size,
            committed_at=checkpoint.committed_at,
            metadata=checkpoint.metadata,
        )
        return cls(resolved_job=job_to_yaml(job), checkpoint=origin, files=files)

    @property
    def info(self) -> CheckpointInfo:
        """The checkpoint that was exported, with the files of the export."""
        origin = self.checkpoint
        return CheckpointInfo(
            origin.name, origin.step, origin.world_size, origin.committed_at, origin.metadata, self.files
        )

    @property
    def job(self) -> JobConfig:
        """The resolved job. Raises `ConfigError` where this llmforge does not understand it."""
        return job_from_yaml(self.resolved_job, f"{EXPORT_RECORD}: resolved_job")


def write_export_record(storage: Storage, record: ExportRecord) -> None:
    """Store the record in an exported folder, once all other files are there: from then on it is one."""
    write_bytes(storage, EXPORT_RECORD, f"{record.model_dump_json(indent=1)}\n".encode())


def read_export_record(storage: Storage) -> ExportRecord | None:
    """The record of an exported folder; None for any other folder. Raises `CheckpointError` for a damaged one."""
    try:
        data = read_bytes(storage, EXPORT_RECORD)
    except NotFoundError:
        return None
    try:
        return ExportRecord.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(
            f"{join_uri(storage.root_uri, EXPORT_RECORD)}: not the record of an export of version 1: "
            f"{first_problem(error)}. It was changed after it was written, or a newer llmforge wrote it: "
            "export again, or use that llmforge."
        ) from error

"""Where answers to a file of prompts go, so that a run which was cut short goes on where it was.

In: answered lines, in the order of the input. Out: one local JSONL file, or parts in a folder (local or `s3://`), and
beside them a record of what was asked. A line is there or not: a torn end of a file is cut off, a part is stored whole.
What a line holds is not known here.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from llmforge.errors import ConfigError
from llmforge.storage import files
from llmforge.storage.base import Storage, open_storage, read_bytes, write_bytes
from llmforge.storage.local import LocalStorage
from llmforge.storage.types import NotFoundError
from llmforge.storage.uri import is_s3, local_path

RECORD_SUFFIX = ".record.json"
RECORD_NAME = "record.json"
"""Of a folder of parts."""
_PART_NAME = re.compile(r"part-(\d{9})-(\d{9})\.jsonl")


class AnswerRecord(BaseModel):
    """What was asked. Answers of two records never stand in one output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    checkpoint: str
    checkpoint_digest: str
    """Of the files of the checkpoint."""
    input_sha256: str
    num_rows: int
    sampling: dict[str, JsonValue]


class AnswerOutput(Protocol):
    """Answered lines, in the order of the input."""

    @property
    def num_done(self) -> int:
        """Rows that are answered already."""

    def write(self, lines: Sequence[str]) -> None:
        """Store the next lines; they stay whatever happens then."""


@dataclass
class AnswerFile:
    """One local file."""

    path: Path
    num_done: int

    def write(self, lines: Sequence[str]) -> None:
        """As in `AnswerOutput`."""
        with files.explained("write the file", self.path), self.path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.num_done += len(lines)


@dataclass
class AnswerParts:
    """`part-<first row>-<row behind the last>.jsonl` in a folder; rows count from 0."""

    storage: Storage
    num_done: int

    def write(self, lines: Sequence[str]) -> None:
        """As in `AnswerOutput`."""
        end = self.num_done + len(lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        write_bytes(self.storage, f"part-{self.num_done:09d}-{end:09d}.jsonl", data)
        self.num_done = end


def open_answer_output(uri: str, record: AnswerRecord) -> AnswerOutput:
    """Begin an output, or go on with it: a file, or a folder of parts where `uri` is in S3 or ends with `/`.

    Raises `ConfigError` where something stands there that another command has begun.
    """
    if is_s3(uri) or uri.endswith("/") or local_path(uri).is_dir():
        storage = open_storage(uri)
        parts = _parts(storage)
        _claim(storage, RECORD_NAME, record, uri, is_empty=not parts)
        return AnswerParts(storage, _rows_in(parts, uri))
    path = local_path(uri)
    is_empty = not path.exists() or path.stat().st_size == 0
    _claim(LocalStorage(path.parent), f"{path.name}{RECORD_SUFFIX}", record, uri, is_empty=is_empty)
    return AnswerFile(path, 0 if is_empty else _mend(path))


def _claim(storage: Storage, key: str, record: AnswerRecord, uri: str, *, is_empty: bool) -> None:
    """See that the output is ours, or make it so."""
    found = _read_record(storage, key)
    if found == record:
        return
    if not is_empty:
        what = "with no record of what was asked" if found is None else f"begun with {_difference(found, record)}"
        raise ConfigError(
            f"--output: {uri} holds answers already, {what}; answers to different questions never stand in one place: "
            "name another place, or remove what is there"
        )
    write_bytes(storage, key, f"{record.model_dump_json(indent=1)}\n".encode())


def _read_record(storage: Storage, key: str) -> AnswerRecord | None:
    try:
        return AnswerRecord.model_validate_json(read_bytes(storage, key))
    except (NotFoundError, ValidationError):
        return None


def _difference(found: AnswerRecord, asked: AnswerRecord) -> str:
    if (found.checkpoint, found.checkpoint_digest) != (asked.checkpoint, asked.checkpoint_digest):
        return f"the checkpoint {found.checkpoint} and not {asked.checkpoint}"
    if found.sampling != asked.sampling:
        names = sorted({*found.sampling, *asked.sampling})
        changed = [name for name in names if found.sampling.get(name) != asked.sampling.get(name)]
        return " and ".join(
            f"{name} {found.sampling.get(name)!r} and not {asked.sampling.get(name)!r}" for name in changed
        )
    return "another input file" if found.input_sha256 != asked.input_sha256 else "other rows of the input"


def _mend(path: Path) -> int:
    """Cut off what a kill or a full disk has left behind the last whole line; how many lines there are."""
    with files.explained("read the file", path), path.open("r+b") as file:
        num_lines = end = 0
        last = b""
        for line in file:
            if line.endswith(b"\n"):
                num_lines, end, last = num_lines + 1, end + len(line), line
        if last and not _is_json(last):  # a power cut may leave zeros
            num_lines, end = num_lines - 1, end - len(last)
        file.truncate(end)
    return num_lines


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parts(storage: Storage) -> dict[int, int]:
    """Of every part the row behind its last, by its first row."""
    return {int(match[1]): int(match[2]) for file in storage.list() if (match := _PART_NAME.fullmatch(file.key))}


def _rows_in(parts: dict[int, int], uri: str) -> int:
    """Rows of the parts, which follow one another from the first."""
    done = num_parts = 0
    while done in parts:
        done, num_parts = parts[done], num_parts + 1
    if num_parts < len(parts):
        raise ConfigError(
            f"--output: {uri} has no part that begins with row {done}, but parts behind it; somebody has removed one: "
            "bring it back, or remove those behind it too"
        )
    return done

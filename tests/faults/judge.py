"""What lies on the server of one run, looked at without llmforge: boto3, JSON and SHA-256 only.

In: the folder of a run, the names of checkpoints that it has announced, and what an undisturbed run of the same job has
saved. Out: the checkpoints that exist, and every problem in plain words. A checkpoint exists if and only if its
`manifest.json` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
_COMPARED_STATE = ("step", "seen_trained_tokens", "evaluations")

ProblemKind = Literal["half visible", "lost", "diverged", "not the newest", "failed"]


@dataclass(frozen=True)
class Problem:
    """Something that must never be."""

    kind: ProblemKind
    text: str


@dataclass(frozen=True)
class SeenCheckpoint:
    """One that exists, and is whole."""

    name: str
    step: int
    committed_at: str
    """UTC in ISO 8601, which sorts as text."""
    content: Mapping[str, str]
    """What every run of the job must have at this step: SHA-256 of the files of tensors, state of the trainer."""


@dataclass(frozen=True)
class Sight:
    """The storage at one moment."""

    newest: SeenCheckpoint | None
    problems: tuple[Problem, ...]
    """Those that no look before has found."""


@dataclass
class Judge:
    """Of one run, whose folder is `prefix` in the bucket; the client goes straight to the server."""

    client: S3Client
    bucket: str
    prefix: str
    expected: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Step to content, of an undisturbed run."""
    announced: set[str] = field(default_factory=set)
    """Names of checkpoints that the run has said to be saved; none is ever removed in these runs."""
    whole: dict[str, SeenCheckpoint] = field(default_factory=dict, init=False)
    """By name; those that were whole when their bytes were last read."""
    _told: set[Problem] = field(default_factory=set, init=False)

    def look(self, *, again: bool = False) -> Sight:
        """Read every byte of the checkpoints that are new; `again`: of all."""
        names = self._names()
        problems: list[Problem] = []
        for name in sorted(names if again else names - self.whole.keys()):
            problems += self._examine(name)
        gone = sorted((self.announced | self.whole.keys()) - names)
        problems += [Problem("lost", f"{name}: was complete, and is not any more") for name in gone]
        new = tuple(problem for problem in problems if problem not in self._told)
        self._told.update(new)
        there = [checkpoint for name, checkpoint in self.whole.items() if name in names]
        newest = max(there, key=lambda checkpoint: (checkpoint.step, checkpoint.committed_at), default=None)
        return Sight(newest, new)

    def _names(self) -> set[str]:
        folder = f"{self.prefix}/checkpoints/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
        paths = [item["Key"].removeprefix(folder).split("/") for page in pages for item in page.get("Contents", ())]
        return {path[0] for path in paths if path[1:] == [MANIFEST]}

    def _examine(self, name: str) -> Iterator[Problem]:
        """Problems of one checkpoint; one that is whole is remembered."""
        self.whole.pop(name, None)
        try:
            manifest = json.loads(self._read(name, MANIFEST) or b"")
        except ValueError as error:
            yield Problem("half visible", f"{name}/{MANIFEST}: cannot be read: {error}")
            return
        content: dict[str, str] = {}
        is_whole = True
        for file in manifest["files"]:
            path = file["path"]
            data = self._read(name, path)
            found = None if data is None else (len(data), hashlib.sha256(data).hexdigest())
            if found != (file["size_bytes"], file["sha256"]):
                is_whole = False
                yield Problem("half visible", f"{name}/{path}: found {found}, the manifest says {file}")
            elif path == STATE and data is not None:
                state = json.loads(data)
                content[path] = json.dumps({key: state[key] for key in _COMPARED_STATE})
            elif path.endswith(".safetensors"):
                content[path] = file["sha256"]
        if not is_whole:
            return
        metadata = manifest["metadata"]
        self.whole[name] = SeenCheckpoint(name, metadata["step"], metadata["committed_at"], content)
        expected = self.expected.get(metadata["step"])
        if expected is not None and content != expected:
            paths = sorted(path for path in {*content, *expected} if content.get(path) != expected.get(path))
            yield Problem("diverged", f"{name}: not those of the undisturbed run: {', '.join(paths)}")

    def _read(self, name: str, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/checkpoints/{name}/{path}")
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        return answer["Body"].read()

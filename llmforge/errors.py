"""The tree of exceptions.

Every error that a user can cause or cure is an `LlmforgeError`; its message says where, what was found, what is
allowed, why, and what to do. The CLI prints it without a traceback and exits 2; any other exception is a bug and shows
one. All of them take one argument, the message, and pickle, because Ray carries them between processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job, printed as `source:line: field: message`."""

    message: str
    """What was found, what is allowed, and what to do."""
    field: str = ""
    """Dotted path of the key, such as `lora_config.r`; empty where the whole file is meant."""
    source: str = ""
    """The job file, or `command line`; empty where nothing but the field is known."""
    line: int | None = None
    """Line in `source`, counted from 1; None where there is no line."""

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.source and self.line is not None else self.source
        return ": ".join(part for part in (place, self.field, self.message) if part)


class LlmforgeError(Exception):
    """Root of all errors that are the user's to solve."""


class ConfigError(LlmforgeError):
    """The job file, an override, or a combination of keys is wrong."""

    problems: tuple[Problem, ...] = ()

    @classmethod
    def from_problems(cls, problems: Iterable[Problem]) -> ConfigError:
        """An error whose text has one problem per line, sorted by place: file lines first, in order."""
        ordered = sorted(problems, key=lambda p: (p.line is None, p.line or 0))
        error = cls("\n".join(str(problem) for problem in ordered))
        error.problems = tuple(ordered)
        return error


class DataError(LlmforgeError):
    """The data cannot be trained on: a bad row, no rows, a wrong order of roles."""


class ModelError(LlmforgeError):
    """A model, tokenizer or adapter cannot be loaded, or does not fit the job."""


class CheckpointError(LlmforgeError):
    """A checkpoint is missing, incomplete or damaged."""


class StorageError(LlmforgeError):
    """A local folder or an object store refused an operation."""


class ClusterError(LlmforgeError):
    """The Ray cluster lacks what the job asks for, or failed."""


class LoggerError(LlmforgeError):
    """A service that metrics go to cannot be used: no package, no key, no answer."""

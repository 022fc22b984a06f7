"""Where metric records go while a run lasts, and how they are read back.

In: metric records (see `meters.py`) with their step. Out: `metrics.jsonl`, one flat JSON object per line, `step` first,
each line written to the file before `log` returns. The driver of a run is its only writer.

Every line is strict JSON, which knows no NaN and no infinity: a number that is not finite is written as `null` and read
back as NaN. The key stays, so a diverged loss shows as `null`, while a loss that was not measured has no key at all.

A run that is killed may leave a torn last line. Readers pass over it, and the next writer cuts it off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llmforge.metrics.json_lines import read_json_lines, rewrite

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
"""In a run's folder, and in each of its checkpoints up to its step."""


class Logger(Protocol):
    """Takes the metric records of one run, in order."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record what was measured when `step` steps had been taken."""

    def close(self) -> None:
        """Finish writing; nothing is logged afterwards. May be called twice."""


class MultiLogger:
    """Hands every record to each of several loggers."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = tuple(loggers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for one in self._loggers:
            one.log(metrics, step)

    def close(self) -> None:
        """Close all of them, in reverse order, also when one of them fails."""
        with contextlib.ExitStack() as stack:
            for one in self._loggers:
                stack.callback(one.close)


class JsonlLogger:
    """Appends records to a file of JSON lines.

    `append=False` starts the file anew. `resume_from_step=s` removes the records of steps after `s` first: they are of
    an attempt that was lost, and those steps will be taken again.

    Raises StorageError when the file that is to be continued holds a line that is no record.
    """

    def __init__(self, path: Path, *, append: bool = True, resume_from_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if append and path.exists():
            _trim(path, resume_from_step)
        self._file = path.open("a" if append else "w", encoding="utf-8", newline="\n")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._file.write(_to_line({"step": step, **metrics}))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MessageHandler(logging.Handler):
    """Hands log lines on as messages to a person."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(self.format(record))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file in the order of the file, without a torn last line; `null` becomes NaN.

    Raises StorageError for any other line that is no record, with its number, and FileNotFoundError.
    """
    return read_json_lines(path, _parse_record, "a JSON object with a `step` and numbers")


def _trim(path: Path, last_step: int | None) -> None:
    """Rewrite the file without a torn last line and without steps after `last_step`; it is whole at any moment."""
    records = read_metrics(path)
    kept = [record for record in records if last_step is None or record["step"] <= last_step]
    if len(kept) < len(records):
        logger.info("%s: removed %d records after step %s", path, len(records) - len(kept), last_step)
    rewrite(path, map(_to_line, kept))


def _to_line(record: Mapping[str, float]) -> str:
    strict = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(strict, allow_nan=False) + "\n"


def _parse_record(line: bytes) -> dict[str, float] | None:
    """The record of one line, or None when the line is not one."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return None
    record = {key: math.nan if value is None else value for key, value in found.items()}
    return record if all(isinstance(value, (int, float)) for value in record.values()) else None

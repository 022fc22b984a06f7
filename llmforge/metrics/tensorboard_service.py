"""A run as event files that TensorBoard shows.

Steps that a lost attempt has logged are taken back: each start of the training writes a mark, from which on TensorBoard
forgets what earlier files hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmforge.errors import LoggerError, StorageError
from llmforge.metrics.services import Measured, RunFacts, Status


class TensorboardService:
    """Writes event files into `folder`; `store` is called with every file when they are to be kept elsewhere, too."""

    forgets_lost_steps = True

    def __init__(self, folder: Path, facts: RunFacts, store: Callable[[Path], None] | None = None) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = folder
        self._facts = facts
        self._store_file = store
        self._is_described = False
        with self._explained():
            self._writer = EventFileWriter(str(folder))

    def begin(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        first = step + 1 if step else 0
        with self._explained():
            mark = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=first, session_log=mark))
            if not self._is_described:
                self._describe()
            self._is_described = True

    def log(self, records: Sequence[Measured]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        with self._explained():
            for record in records:
                values = [Summary.Value(tag=key, simple_value=value) for key, value in record.values.items()]
                self._writer.add_event(Event(wall_time=record.at, step=record.step, summary=Summary(value=values)))
            self._writer.flush()

    def link(self, links: Mapping[str, str]) -> None:
        with self._explained():
            self._write_text("links", {**self._facts.links, **links})
            self._writer.flush()
            self._store()

    def finish(self, status: Status) -> None:
        with self._explained():
            self._write_text("status", {"status": status})
            self._writer.close()
            self._store()

    def _describe(self) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        known = {key: value for key, value in self._facts.params.items() if value is not None}
        self._add(hparams_pb(known, trial_id=self._facts.name))
        self._write_text("job", {key: json.dumps(value) for key, value in self._facts.params.items()})
        self._write_text("links", self._facts.links)

    def _write_text(self, tag: str, lines: Mapping[str, str]) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        rows = [f"| {key} | {text} |" for key, text in lines.items()]
        self._add(text_pb(tag, "\n".join(["| key | value |", "|---|---|", *rows])))

    def _add(self, summary: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), summary=summary))

    def _store(self) -> None:
        if self._store_file is not None:
            for path in self._folder.iterdir():
                self._store_file(path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, StorageError) as error:
            raise LoggerError(f"tensorboard: {self._folder}: its files cannot be written or stored: {error}") from error

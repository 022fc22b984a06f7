"""A storage in memory, whose clock the tests set, and a wrapper by which two processes take turns in a chosen order."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain, repeat
from pathlib import Path

from llmforge.storage.base import ExistsError, NotFoundError, Storage, StoredFile

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass
class MemoryStorage:
    """Keeps the rules of `Storage` without a disk."""

    now: datetime = START
    root_uri: str = "memory://run"
    files: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    """The keys, in order."""
    discarded: list[str] = field(default_factory=list)
    """The prefixes, in order."""

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        data = source.read_bytes()
        if not replace and key in self.files and self.files[key][0] != data:
            raise ExistsError.of(key, source)
        self.uploads.append(key)
        self.files[key] = (data, self.now)

    def download(self, key: str, target: Path) -> None:
        if key not in self.files:
            raise NotFoundError(f"{key}: no such file")
        target.write_bytes(self.files[key][0])

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        start = f"{prefix}/" if prefix else ""
        return [
            StoredFile(key, len(data), written_at)
            for key, (data, written_at) in sorted(self.files.items())
            if key.startswith(start)
        ]

    def delete(self, key: str) -> None:
        self.files.pop(key, None)

    def discard_unfinished(self, prefix: str = "") -> None:
        self.discarded.append(prefix)


class Turns:
    """Whose turn it is: processes "a" and "b" each do one operation a turn, in a given order, as long as they live."""

    def __init__(self, order: Iterator[str], after_each: Callable[[bool], None]) -> None:
        self._order = order
        self._after_each = after_each
        self._alive = {"a", "b"}
        self._condition = threading.Condition()
        self._current = next(order)

    def begin(self, who: str) -> None:
        with self._condition:
            while self._current != who:
                self._condition.wait()

    def end(self, is_changed: bool) -> None:
        self._after_each(is_changed)
        with self._condition:
            self._advance()

    def leave(self, who: str) -> None:
        with self._condition:
            self._alive.discard(who)
            if self._current == who:
                self._advance()

    def _advance(self) -> None:
        self._current = next(who for who in self._order if who in self._alive or not self._alive)
        self._condition.notify_all()


@dataclass
class TurnStorage:
    """What one of two processes sees of a storage that both use."""

    inner: Storage
    who: str
    turns: Turns

    @property
    def root_uri(self) -> str:
        return self.inner.root_uri

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        self._take_turn(lambda: self.inner.upload(source, key, replace=replace))

    def download(self, key: str, target: Path) -> None:
        self._take_turn(lambda: self.inner.download(key, target), is_change=False)

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        found: builtins.list[StoredFile] = []
        self._take_turn(lambda: found.extend(self.inner.list(prefix)), is_change=False)
        return found

    def delete(self, key: str) -> None:
        self._take_turn(lambda: self.inner.delete(key))

    def discard_unfinished(self, prefix: str = "") -> None:
        self._take_turn(lambda: self.inner.discard_unfinished(prefix))

    def _take_turn(self, operation: Callable[[], None], *, is_change: bool = True) -> None:
        self.turns.begin(self.who)
        try:
            operation()
        finally:
            self.turns.end(is_change)


def run_in_turns(
    storage: Storage,
    first: Callable[[Storage], None],
    second: Callable[[Storage], None],
    order: tuple[int, int],
    after_each: Callable[[bool], None],
) -> None:
    """Run two processes on one storage: so many operations of the first, so many of the second, then each to its end.

    What they raise is theirs to catch. `after_each` is told behind every operation whether it may have changed
    anything.
    """
    num_first, num_second = order
    turns = Turns(chain(repeat("a", num_first), repeat("b", num_second), repeat("a", 500), repeat("b")), after_each)

    def run(who: str, process: Callable[[Storage], None]) -> None:
        try:
            process(TurnStorage(storage, who, turns))
        finally:
            turns.leave(who)

    threads = [threading.Thread(target=run, args=("a", first)), threading.Thread(target=run, args=("b", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

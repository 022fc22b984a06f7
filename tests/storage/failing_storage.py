"""A storage whose process dies at a chosen operation: a real one, wrapped, passed where a `Storage` is expected."""

from __future__ import annotations

import builtins
import threading
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.errors import StorageError
from llmforge.storage.base import Storage, StoredFile


class KilledError(StorageError):
    """Stands for the death of the process."""


@dataclass
class FailingStorage:
    """Passes on `fail_at - 1` operations; that one, and all after it, raise `KilledError`.

    With `after_effect` the fatal operation still happens, as when a process dies before it hears of its success.
    """

    inner: Storage
    fail_at: int
    after_effect: bool = False
    num_operations: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def root_uri(self) -> str:
        return self.inner.root_uri

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        with self._lock:
            if self._lives_on():
                self.inner.upload(source, key, replace=replace)
            self._die_if_due()

    def download(self, key: str, target: Path) -> None:
        with self._lock:
            if self._lives_on():
                self.inner.download(key, target)
            self._die_if_due()

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        with self._lock:
            self.num_operations += 1
            self._die_if_due()
            return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        with self._lock:
            if self._lives_on():
                self.inner.delete(key)
            self._die_if_due()

    def discard_unfinished(self, prefix: str = "") -> None:
        with self._lock:
            if self._lives_on():
                self.inner.discard_unfinished(prefix)
            self._die_if_due()

    def _lives_on(self) -> bool:
        """Count one operation; whether it takes effect."""
        self.num_operations += 1
        return self.num_operations < self.fail_at + self.after_effect

    def _die_if_due(self) -> None:
        if self.num_operations >= self.fail_at:
            raise KilledError(f"killed at operation {self.num_operations}")

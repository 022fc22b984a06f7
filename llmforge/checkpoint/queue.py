"""The work of saving that goes on beside the training: write first, then upload, in order, and a bounded amount of it.

In: for each save what writes its files and what uploads them. Two threads, so that a save is on the disk, and its
memory free, while an earlier one is still on its way; both yield the processor to the training. What stops one of them
is raised in the thread that trains, and ends the work of all that follow.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Written = TypeVar("_Written")

CAPACITY = 2
"""Saves that are not done yet: one on its way, one that waits."""
_NICENESS = 10
"""Above that of the training: a tenth of its processor time, where there is not enough for all."""
_MOST_NICENESS = 19


class SaveQueue:
    """For one thread that saves. Close it in the end, whatever happened."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._places = threading.BoundedSemaphore(capacity)
        self._writer = ThreadPoolExecutor(1, "llmforge-write", initializer=_yield_to_others)
        self._uploader = ThreadPoolExecutor(1, "llmforge-upload", initializer=_yield_to_others)
        self._saves: list[Future[None]] = []
        self._error: BaseException | None = None

    def reserve(self) -> None:
        """Wait for a place; every `submit` needs one. Raises what has stopped an earlier save."""
        self._places.acquire()
        self.check()

    def submit(self, write: Callable[[], _Written], upload: Callable[[_Written], None]) -> None:
        """Do both in the background; what the first gives goes into the second."""
        written = self._writer.submit(self._guarded, write)

        def upload_written() -> None:
            try:
                result = written.result()
                self._guarded(lambda: upload(result))
            finally:
                self._places.release()

        self._saves.append(self._uploader.submit(upload_written))

    def check(self) -> None:
        """Raise what has stopped an earlier save."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until all is done; raises what has stopped a save."""
        for save in self._saves:
            save.result()
        self._saves.clear()

    def close(self) -> None:
        """Let go of the threads; what has not begun never does."""
        for pool in (self._writer, self._uploader):
            pool.shutdown(wait=False, cancel_futures=True)

    def _guarded(self, work: Callable[[], _Written]) -> _Written:
        """Do it, unless something before has failed: saves become visible in their order or not at all."""
        self.check()
        try:
            return work()
        except BaseException as error:
            self._error = error
            raise


def _yield_to_others() -> None:
    """Lower the priority of this thread, and of those that it starts; Linux knows them one by one."""
    thread = threading.get_native_id()
    # From where it is: only root may raise a priority, and Ray has lowered that of its workers.
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
    os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MOST_NICENESS))

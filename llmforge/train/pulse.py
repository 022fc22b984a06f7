"""The sign of life of one rank: a thread that tells the driver where the training is, and brings back its requests.

In: the phases that the training thread enters. Out: a `Beat` each second, and the latest `Request`. On SIGUSR1 the
process writes the Python stacks of all its threads to a file, also while it is stuck in native code.
"""

import faulthandler
import os
import signal
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from llmforge.train.channel import Beat
from llmforge.train.requests import Request

BEAT_SECONDS = 1.0


class Pulse:
    """Beats from its start until it is closed, or until the driver is gone."""

    def __init__(self, mailbox: Any, group: int, rank: int, num_workers: int) -> None:
        self._mailbox = mailbox
        self._group = group
        self._rank = rank
        self._num_workers = num_workers
        self._place = ("starting", 0, 0, False)
        self._request = Request()
        self._stop = threading.Event()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._process_started_at = psutil.Process().create_time()
        descriptor, path = tempfile.mkstemp(prefix="llmforge-stacks-", suffix=".txt")
        self._stack_file = Path(path)
        self._stacks = os.fdopen(descriptor, "w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self._thread = threading.Thread(target=self._beat, name="llmforge-pulse", daemon=True)
        self._thread.start()

    @property
    def request(self) -> Request:
        """What the driver asks for, as far as it is known here."""
        return self._request

    def enter(self, phase: str, step: int, *, is_watched: bool = True) -> None:
        """The training thread begins something that takes time."""
        self._place = (phase, step, self._place[2] + 1, is_watched)

    def advance(self) -> None:
        """The training thread has come further within its phase."""
        phase, step, progress, is_watched = self._place
        self._place = (phase, step, progress + 1, is_watched)

    def close(self) -> None:
        """No further beats."""
        self._stop.set()
        self._thread.join()
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()
        self._stack_file.unlink()

    def _beat(self) -> None:
        for number in count():
            if self._stop.is_set():
                return
            started = time.monotonic()
            phase, step, progress, is_watched = self._place
            beat = Beat(
                group=self._group,
                rank=self._rank,
                num_workers=self._num_workers,
                phase=phase,
                step=step,
                number=number,
                progress=progress,
                is_watched=is_watched,
                node_id=self._node_id,
                pid=os.getpid(),
                process_started_at=self._process_started_at,
                stack_file=str(self._stack_file),
            )
            try:
                self._request = ray.get(self._mailbox.beat.remote(beat))
            except RayError:  # the driver is gone, and with it whoever could listen
                return
            self._stop.wait(max(0.0, BEAT_SECONDS - (time.monotonic() - started)))

"""The driver's watch over its workers: who has stopped moving, whose node is to be taken away, who is asked to stop.

In: the beats of the ranks. Out: requests to them (save at once; save and leave), and words for the person. A rank that
has not moved for too long is reported with its phase and the stacks of all ranks; then all are killed, and Ray Train
starts them again as after any other failure.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmforge.errors import StorageError
from llmforge.storage.base import Storage, write_bytes
from llmforge.train.channel import Beat
from llmforge.train.requests import Request

POLL_SECONDS = 1.0
STACKS_SECONDS = 3.0
"""How long a process may take to write its stacks."""
LEAVE_SECONDS = 2.0
"""How long the end of the watch may take when a node does not answer."""
NODE_SECONDS = 30.0
"""How long a node may take to answer."""


@dataclass(frozen=True)
class Stall:
    """Ranks that have not moved for too long."""

    beats: tuple[Beat, ...]
    """Of all ranks, by rank."""
    seconds: float
    """Since any of them last moved."""

    @property
    def culprits(self) -> tuple[Beat, ...]:
        """Those that are behind all others, for whom these wait; all of them where nobody is behind."""
        least = min(beat.progress for beat in self.beats)
        return tuple(beat for beat in self.beats if beat.progress == least)

    def describe(self) -> str:
        """One line."""
        named = "; ".join(f"rank {beat.rank} in {beat.phase!r} of step {beat.step}" for beat in self.culprits)
        waiting = "; the others wait" if len(self.culprits) < len(self.beats) else ""
        return f"stalled: nothing has moved for {self.seconds:.0f} s: {named}{waiting}"


class StallWatch:
    """Notices when no rank of a worker group enters a new phase any more."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._places: Mapping[int, tuple[int, int]] = {}
        self._moved_at = 0.0
        self._heard: dict[int, tuple[tuple[int, int], float]] = {}
        """By rank: group and number of its last beat, and when that was new."""

    def look(self, beats: Sequence[Beat], now: float) -> Stall | None:
        """Judge the latest beats at `now` (seconds of a clock that only goes forward)."""
        places = {beat.rank: (beat.group, beat.progress) for beat in beats}
        if places != self._places:
            self._places, self._moved_at = places, now
        # A rank that does not even beat has stalled in whatever phase, and its last beat may be of the one before.
        suspects = [self._is_silent(beat, now) or beat.is_watched for beat in beats]
        is_complete = bool(beats) and len(beats) == beats[0].num_workers
        seconds = now - self._moved_at
        if is_complete and seconds > self._timeout_seconds and all(suspects):
            return Stall(tuple(sorted(beats, key=lambda beat: beat.rank)), seconds)
        return None

    def _is_silent(self, beat: Beat, now: float) -> bool:
        sign = (beat.group, beat.number)
        if self._heard.get(beat.rank, (None, 0.0))[0] != sign:
            self._heard[beat.rank] = (sign, now)
        return now - self._heard[beat.rank][1] > self._timeout_seconds


class Supervisor:
    """A thread that watches until the context is left. `mailbox` is the handle of a `Mailbox` actor."""

    def __init__(
        self, mailbox: Any, storage: Storage, tell: Callable[[str], None], stall_timeout_seconds: float | None
    ) -> None:
        self._mailbox = mailbox
        self._storage = storage
        self._tell = tell
        self._watch = None if stall_timeout_seconds is None else StallWatch(stall_timeout_seconds)
        self._request = Request()
        self._group = 0
        self._handled_group = 0
        self._draining: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="llmforge-supervisor", daemon=True)

    def __enter__(self) -> "Supervisor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LEAVE_SECONDS)

    def ask_to_stop(self) -> None:
        """Have the workers save and leave."""
        with self._lock:
            self._ask(replace(self._request, stop=True))

    def _supervise(self) -> None:
        can_see = True
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._look_at(ray.get(self._mailbox.beats.remote()))
                can_see = True
            except RayError as error:
                # A cluster that does not answer is Ray Train's to judge; this watch goes on when it is back.
                if can_see:
                    self._tell(f"the workers cannot be watched: {error}")
                can_see = False

    def _look_at(self, beats: Sequence[Beat]) -> None:
        if not beats:
            return
        with self._lock:
            if beats[0].group != self._group:
                # What was asked of a group before has ended with it; a stop holds for every one.
                self._group, self._request = beats[0].group, Request(stop=self._request.stop)
            self._look_for_preemption(beats)
        stall = self._watch.look(beats, time.monotonic()) if self._watch is not None else None
        if stall is not None and self._group != self._handled_group:
            self._handled_group = self._group
            self._end(stall)

    def _look_for_preemption(self, beats: Sequence[Beat]) -> None:
        """Have all save when a node of theirs is announced to go."""
        deadlines = ray_state.get_draining_nodes()
        ours = {beat.node_id for beat in beats} & deadlines.keys()
        for node in ours - self._draining:
            ranks = ", ".join(str(beat.rank) for beat in beats if beat.node_id == node)
            deadline = deadlines[node]
            when = f" at {datetime.fromtimestamp(deadline / 1000):%H:%M:%S}" if deadline else ""
            self._tell(f"the node of rank {ranks} will be taken away{when} (notice of preemption): saving at once")
        if ours - self._draining:
            self._draining |= ours
            self._ask(replace(self._request, num_saves=self._request.num_saves + 1))

    def _ask(self, request: Request) -> None:
        self._request = request
        ray.get(self._mailbox.ask.remote(request))

    def _end(self, stall: Stall) -> None:
        """Report the stall, with stacks, and kill all workers."""
        stacks = {beat.rank: self._on_node_of(beat, stacks_of) for beat in stall.beats}
        text = "\n\n".join(
            [stall.describe()]
            + [
                f"rank {beat.rank}, pid {beat.pid}, {beat.phase}, step {beat.step}\n{stacks[beat.rank]}"
                for beat in stall.beats
            ]
        )
        key = f"stalls/group-{self._group:02d}-step-{stall.culprits[0].step:08d}.txt"
        self._tell(f"{stall.describe()}; the stacks of all ranks are in {self._storage.root_uri}/{key}; starting anew")
        try:
            write_bytes(self._storage, key, text.encode())
        except StorageError as error:
            self._tell(f"{error}\n{text}")
        for beat in stall.beats:
            self._on_node_of(beat, kill)

    def _on_node_of(self, beat: Beat, action: Callable[[Beat], str]) -> str:
        """Do it where the process of a rank is; what came of it, in words."""
        place = NodeAffinitySchedulingStrategy(beat.node_id, soft=False)
        try:
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(action)
            return str(ray.get(task.remote(beat), timeout=NODE_SECONDS))
        except RayError as error:
            return f"the node does not answer: {error}"


def stacks_of(beat: Beat) -> str:
    """The Python stacks of a rank's process on this node, all threads; why there are none where it gives none."""
    process = _process_of(beat)
    if process is None:
        return "the process is gone"
    file = Path(beat.stack_file)
    before = file.stat().st_size
    os.kill(beat.pid, signal.SIGUSR1)
    deadline = time.monotonic() + STACKS_SECONDS
    size = before
    while time.monotonic() < deadline:
        time.sleep(0.2)
        last, size = size, file.stat().st_size
        if size == last > before:
            return file.read_text(errors="replace")
    return f"the process does not answer (its state: {process.status()})"


def kill(beat: Beat) -> str:
    """End the process of a rank on this node, as the system would that has run out of memory."""
    process = _process_of(beat)
    if process is not None:
        process.kill()
    return ""


def _process_of(beat: Beat) -> psutil.Process | None:
    """The process that sent the beat, if it still lives."""
    try:
        process = psutil.Process(beat.pid)
        return process if process.create_time() == beat.process_started_at else None
    except psutil.NoSuchProcess:
        return None

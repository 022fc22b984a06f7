"""What workers and driver tell each other while a run lasts, through one small Ray actor beside the driver.

Workers send events (metrics, phases, messages) and beats, which say where each rank is; the answer to a beat is what
the driver asks of them. `ray.train.report` is not used for this: it makes every rank wait until the controller has
polled, about once a second.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmforge.metrics.samples import Sample
from llmforge.train.requests import Request

POLL_SECONDS = 0.2
QUIET_SECONDS = 15.0
"""A worker group that has not beaten for so long is gone, or can no longer answer."""


@dataclass(frozen=True)
class Event:
    """One thing that happened in the run, sent by rank 0 or by Ray Train's controller."""

    kind: Literal[
        "phase", "message", "started", "metrics", "samples", "checkpoint", "timing", "failure", "stopped", "waiting"
    ]
    step: int = 0
    text: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Beat:
    """Where one rank is."""

    group: int
    """Which start of the workers, counted from 1."""
    rank: int
    num_workers: int
    phase: str
    step: int
    number: int
    """How many the rank has sent before."""
    progress: int
    """Grows with every phase that the rank enters."""
    is_watched: bool
    """False in a phase that may take any time, or that ends by a deadline of its own."""
    node_id: str
    pid: int
    process_started_at: float
    """With the pid it names one process, also when the system has given the pid to another."""
    stack_file: str
    """On the rank's node: where its process writes its stacks on SIGUSR1."""


class Mailbox:
    """Keeps what was sent until it is fetched. Runs as an actor."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._beats: dict[int, Beat] = {}
        self._request = Request()
        self._num_groups = 0
        self._is_group_alive = False
        self._is_leaving = False
        self._beaten_at = 0.0

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        if event.kind == "stopped":
            self.end_group()

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def begin_group(self) -> int:
        """A worker group has started; its number, counted from 1."""
        self._num_groups += 1
        self._is_group_alive = True
        self._is_leaving = False
        self._beaten_at = time.monotonic()
        self._beats = {}
        self._request = Request(stop=self._request.stop)
        return self._num_groups

    def end_group(self) -> None:
        """The newest worker group has failed or left: what its ranks may still say does not count."""
        self._is_group_alive = False
        self._beats = {}

    def beat(self, beat: Beat) -> Request:
        """Keep the beat of a rank of the newest worker group, and tell what is asked of all."""
        if self._is_group_alive and beat.group == self._num_groups:
            self._beats[beat.rank] = beat
            self._beaten_at = time.monotonic()
        return replace(self._request, stop=True) if self._is_leaving else self._request

    def beats(self) -> list[Beat]:
        """The last beat of every rank of the newest worker group."""
        return list(self._beats.values())

    def is_group_moving(self) -> bool:
        """Whether there is a worker group that can be asked for something."""
        return self._is_group_alive and time.monotonic() - self._beaten_at < QUIET_SECONDS

    def let_leave(self) -> None:
        """The newest worker group is to save and leave; another follows."""
        self._is_leaving = True

    def ask(self, request: Request) -> None:
        """From now on this is asked of the workers."""
        self._request = request


class Sender:
    """The workers' end; only rank 0 sends. `mailbox` is the handle of a `Mailbox` actor."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        self._mailbox = mailbox
        self._rank = rank
        self._last_put: Any = None

    def send(self, event: Event) -> None:
        """Send without waiting. May be called from any thread."""
        if self._rank == 0:
            self._last_put = self._mailbox.put.remote(event)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """`Logger` of the training loop."""
        self.send(Event("metrics", step=step, metrics=metrics))

    def close(self) -> None:
        """Wait until all has arrived: what is under way when a process ends is lost."""
        if self._last_put is not None:
            ray.get(self._last_put)


class Receiver:
    """The driver's end: a thread that hands every event to `handle`, in order, until the context is left."""

    def __init__(self, handle: Callable[[Event], None]) -> None:
        # Beside the driver, so that the loss of another node cannot take it away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        self._handle = handle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="llmforge-events", daemon=True)

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take()
        ray.kill(self.mailbox)

    def _receive(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._take()

    def _take(self) -> None:
        for event in ray.get(self.mailbox.take.remote()):
            self._handle(event)

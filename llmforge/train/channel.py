"""What the workers tell the driver while a run lasts: metrics, phases and messages, through one small Ray actor.

`ray.train.report` is not used for this: it makes every rank wait until the controller has polled, about once a second.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Event:
    """One thing that happened in the run, sent by rank 0."""

    kind: Literal["phase", "started", "metrics", "checkpoint", "timing"]
    step: int = 0
    text: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


class Mailbox:
    """Keeps events until the driver fetches them. Runs as an actor."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events


class Sender:
    """The workers' end; only rank 0 sends. `mailbox` is the handle of a `Mailbox` actor."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        self._mailbox = mailbox
        self._rank = rank
        self._last_put: Any = None

    def send(self, event: Event) -> None:
        """Send without waiting."""
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
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
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

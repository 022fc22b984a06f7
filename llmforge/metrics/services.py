"""Logging services beside `metrics.jsonl`: what they are asked for, and a thread in which they take their time.

In: the metric records of a run, in order, from the driver. Out: the same records in a service, each value once. A
service that is slow, or that fails in the middle, never holds the run back: records wait in a bounded queue and are
sent again until the service takes them; what it has not taken when the run ends is counted and told.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import Literal, Protocol

from llmforge.errors import LoggerError

_LOG = logging.getLogger(__name__)

Status = Literal["finished", "failed", "stopped"]
Param = str | int | float | bool | None

MOST_WAITING = 20_000
"""Records that a service may be behind."""
MOST_AT_ONCE = 200
RETRY_SECONDS = 5.0
RETRY_AT_THE_END_SECONDS = 0.5
CLOSE_SECONDS = 30.0
"""How long the end of a run waits for a service."""
_WHERE_ALL_IS = "metrics.jsonl in the folder of the run has them all"


@dataclass(frozen=True)
class RunFacts:
    """What a service is told about a run before its first metric."""

    name: str
    params: Mapping[str, Param]
    """The resolved job with dotted keys, without secrets."""
    links: Mapping[str, str]
    """Addresses of what the run leaves behind."""


@dataclass(frozen=True)
class Measured:
    """One metric record."""

    step: int
    at: float
    """Seconds since the epoch."""
    values: Mapping[str, float]


class Service(Protocol):
    """One run in one logging service. Any method may raise LoggerError, and is called again then."""

    forgets_lost_steps: bool
    """Whether `begin` takes back what was logged of later steps."""

    def begin(self, step: int) -> None:
        """Training begins, or begins again, with the step after `step`."""

    def log(self, records: Sequence[Measured]) -> None:
        """Keep these records."""

    def link(self, links: Mapping[str, str]) -> None:
        """Keep these addresses, in place of earlier ones of the same name; a moment to write out what waits."""

    def finish(self, status: Status) -> None:
        """The run has ended so; nothing follows."""


class ServiceThread:
    """Hands what happens in a run on to a service, in order, in a thread of its own.

    `sent` says up to which step the service has each metric; no value is sent to it twice. Where a service cannot take
    back what a lost attempt has logged beyond its checkpoint, that stays, and a step that is taken again is not sent
    again: it computes the same.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        sent: Mapping[str, int],
        *,
        most_waiting: int = MOST_WAITING,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.name = name
        self._service = service
        self._sent = dict(sent)
        self._most_waiting = most_waiting
        self._retry_seconds = retry_seconds
        self._waiting: deque[Measured | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"llmforge-{name}", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> dict[str, int]:
        """Up to which step the service has each metric."""
        with self._changed:
            return dict(self._sent)

    def begin(self, step: int, records: Sequence[Measured]) -> None:
        """Training goes on after `step`; `records` are all up to there, of which the service gets what it lacks."""
        self._put(partial(self._begin, step))
        for record in records:
            self._put(record)

    def log(self, record: Measured) -> None:
        """Send a record, or count it as lost where too many are waiting."""
        if len(self._waiting) < self._most_waiting:
            self._put(record)
        else:
            self._num_dropped += 1

    def link(self, links: Mapping[str, str]) -> None:
        """Send addresses."""
        self._put(partial(self._service.link, links))

    def finish(self, status: Status, close_seconds: float = CLOSE_SECONDS) -> None:
        """Say how the run ended, wait so long until all is sent, and tell what is lost; then no more is sent."""
        self._put(partial(self._service.finish, status))
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(close_seconds)
        self._given_up.set()
        num_lost = self._num_dropped + sum(isinstance(item, Measured) for item in self._waiting)
        if num_lost:
            _LOG.warning("%s: %d records did not get there; %s", self.name, num_lost, _WHERE_ALL_IS)
        elif self._waiting:
            _LOG.warning("%s: it has all records, and was not told that the run has %s", self.name, status)

    def _put(self, item: Measured | Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()

    def _work(self) -> None:
        has_warned = False
        while not self._given_up.is_set() and (items := self._next()):
            try:
                self._hand_over(items)
            except LoggerError as error:
                if not has_warned:
                    _LOG.warning("%s; training goes on, and the records are sent again later", error)
                    has_warned = True
                if self._closing.wait(self._retry_seconds):
                    self._given_up.wait(min(self._retry_seconds, RETRY_AT_THE_END_SECONDS))
                continue
            with self._changed:
                for _ in items:
                    self._waiting.popleft()

    def _next(self) -> list[Measured | Callable[[], None]]:
        """The records that come next, or one call; nothing when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
            first = list(islice(self._waiting, MOST_AT_ONCE))
        records = list(takewhile(lambda item: isinstance(item, Measured), first))
        return records or first[:1]

    def _hand_over(self, items: Sequence[Measured | Callable[[], None]]) -> None:
        sent, new = self.sent, []
        for item in items:
            if not isinstance(item, Measured):
                item()
                continue
            values = {key: value for key, value in item.values.items() if item.step > sent.get(key, -1)}
            sent.update(dict.fromkeys(values, item.step))
            if values:
                new.append(replace(item, values=values))
        if new:
            self._service.log(new)
            with self._changed:
                self._sent = sent

    def _begin(self, step: int) -> None:
        self._service.begin(step)
        if self._service.forgets_lost_steps:
            with self._changed:
                self._sent = {key: min(last, step) for key, last in self._sent.items()}

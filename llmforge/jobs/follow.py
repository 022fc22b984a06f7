"""The log of a job as it grows, for as long as the job lives.

In: a job of a cluster. Out: its lines in order, each once. They come through the same web socket as for
`ray job logs --follow`; where something between here and the cluster lets none through, by asking again and again. A
connection that is lost is made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from llmforge.jobs.ray_api import CONNECT_SECONDS, ENDED, RayApi, UnreachableError

PATIENCE_SECONDS = 600.0
"""How long the cluster may be out of reach before it is given up."""
RETRY_SECONDS = 2.0
POLL_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""After so long without a line the connection may be dead without a sign: Ray's side answers no pings."""

_Answer = TypeVar("_Answer")


class LogFollower:
    """Follows one job; `tell` gets a line where the connection is lost, and where it is there again."""

    def __init__(
        self,
        api: RayApi,
        submission_id: str,
        tell: Callable[[str], None],
        *,
        num_seen: int = 0,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`num_seen`: characters of the log to pass over; `poll_seconds`: between two looks without a web socket."""
        self._api = api
        self._submission_id = submission_id
        self._tell = tell
        self._num_seen = num_seen
        self._poll_seconds = poll_seconds
        self._rest = ""
        """A line that has begun."""

    def lines(self) -> Iterator[str]:
        """The lines until the job has ended. Raises `UnreachableError` when the cluster stays out of reach."""
        while not self._has_ended():
            yield from self._stream()
        yield from self._fresh(self._whole_log(), 0)
        if self._rest:
            yield self._rest

    def _has_ended(self) -> bool:
        return self._patiently(lambda: self._api.job(self._submission_id)).status in ENDED

    def _stream(self) -> Iterator[str]:
        """What comes through one connection, until it is closed or says nothing."""
        address = self._api.address
        url = f"ws{address.url.removeprefix('http')}/api/jobs/{quote(self._submission_id, safe='')}/logs/tail"
        position = 0
        try:
            with connect(
                url,
                additional_headers=dict(address.headers),
                compression=None,  # Ray's dashboard passes such a wish on, and cannot read what then comes back
                open_timeout=CONNECT_SECONDS,
                ping_interval=None,
                max_size=None,
            ) as connection:
                while True:
                    text = str(connection.recv(timeout=SILENCE_SECONDS))
                    yield from self._fresh(text, position)
                    position += len(text)
        except (InvalidHandshake, ConnectionClosed, OSError):
            if position == 0:
                yield from self._fresh(self._whole_log(), 0)
                time.sleep(self._poll_seconds)

    def _whole_log(self) -> str:
        return self._patiently(lambda: self._api.log(self._submission_id))

    def _fresh(self, text: str, position: int) -> Iterator[str]:
        """The lines that end in what is new of a text that stands at a position of the log."""
        fresh = text[max(0, self._num_seen - position) :]
        self._num_seen = max(self._num_seen, position + len(text))
        *lines, self._rest = (self._rest + fresh).split("\n")
        yield from lines

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        lost_at: float | None = None
        while True:
            try:
                answer = ask()
            except UnreachableError as error:
                now = time.monotonic()
                if lost_at is None:
                    lost_at = now
                    self._tell(f"the cluster does not answer; trying again for {PATIENCE_SECONDS / 60:g} minutes")
                elif now - lost_at > PATIENCE_SECONDS:
                    raise UnreachableError(f"{error} The job itself may well go on.") from error
                time.sleep(RETRY_SECONDS)
            else:
                if lost_at is not None:
                    self._tell("the cluster answers again")
                return answer

"""A log is read line by line, each line once, whatever the connection does on the way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from llmforge.jobs.address import ClusterAddress
from llmforge.jobs.follow import LogFollower
from llmforge.jobs.ray_api import RayApi
from tests.jobs.dashboard import Dashboard

LOG = "one\ntwo: ü €\n\nthree\nfour"


LINES = ["one", "two: ü €", "", "three", "four"]
LOST = "the connection breaks"


@dataclass
class Cluster:
    """A server of the log whose connections send one script after the other; after the last one the job has ended."""

    scripts: list[Sequence[str]]
    dashboard: Dashboard = field(
        default_factory=lambda: Dashboard(
            jobs={"run": {"status": "RUNNING", "submission_id": "run"}}, logs={"run": LOG}
        )
    )
    tokens: list[str | None] = field(default_factory=list)

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Everything but a web socket."""
        if request.path.endswith("/logs/tail"):
            self.tokens.append(request.headers.get("Authorization"))
            return None
        status, content = self.dashboard.answer("GET", request.path, b"")
        return connection.respond(status, json.dumps(content))

    def send(self, connection: ServerConnection) -> None:
        """The next script."""
        script = self.scripts.pop(0)
        if not self.scripts:
            self.dashboard.jobs["run"]["status"] = "SUCCEEDED"
        for text in script:
            if text == LOST:
                connection.socket.shutdown(socket.SHUT_RDWR)
            else:
                connection.send(text)


@contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    with serve(cluster.send, "127.0.0.1", 0, process_request=cluster.answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def follow(url: str, *, num_seen: int = 0) -> list[str]:
    api = RayApi(ClusterAddress(url, {"Authorization": "Bearer t"}))
    told: list[str] = []
    follower = LogFollower(api, "run", told.append, num_seen=num_seen, poll_seconds=0.01)
    lines = list(follower.lines())
    assert told == []
    return lines


@pytest.mark.parametrize(
    "scripts",
    [
        [["one\ntw", "o: ü €\n\nthree\n", "four"]],
        [["one\ntw", LOST], ["one\n", "two: ü €\n\nthr", LOST], [LOG]],
        [["one\n"]],
        [["one\n", LOST]],
        [[LOST], [LOST], ["one\n"]],
    ],
    ids=["whole", "lost twice", "closed before the rest", "lost at the end", "lost at once"],
)
def test_every_line_once(scripts: list[Sequence[str]]) -> None:
    cluster = Cluster(scripts)
    with serving(cluster) as url:
        assert follow(url) == LINES
    assert set(cluster.tokens) == {"Bearer t"}


def test_what_was_seen_before_is_passed_over() -> None:
    with serving(Cluster([["one\ntw", "o: ü €\n"]])) as url:
        assert follow(url, num_seen=len("one\n")) == LINES[1:]


class Growing(Dashboard):
    """Its log grows, and its job ends, as it is asked."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        texts = ["one\ntw", "one\ntwo: ü €\n\nth", LOG]
        asked = sum(request.endswith("/logs") for request in self.requests)
        self.logs["run"] = texts[min(asked, 2)]
        self.jobs["run"] = {"status": "SUCCEEDED" if asked > 1 else "RUNNING", "submission_id": "run"}
        return super().answer(method, path, body)


def test_where_no_web_socket_gets_through_the_log_is_asked_for_again_and_again() -> None:
    with Growing() as cluster:
        assert follow(cluster.url) == LINES
    assert sum(request.endswith("/logs") for request in cluster.requests) == 3

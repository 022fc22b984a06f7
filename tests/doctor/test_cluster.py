"""Addresses of clusters, against servers of our own and ports that nobody listens at."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time

import pytest
from packaging.specifiers import SpecifierSet

from llmforge.doctor.cluster import check_clock, check_cluster

ALLOWED = SpecifierSet(">=2.60,<3")


class Dashboard(ThreadingHTTPServer):
    """Answers as the head of a Ray cluster does."""

    ray_version = "2.60.0"
    jobs_status = 200
    token = ""
    seconds_ahead = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Dashboard

    def do_GET(self) -> None:
        is_allowed = not self.server.token or self.headers["Authorization"] == f"Bearer {self.server.token}"
        body = {"/api/version": {"ray_version": self.server.ray_version}, "/api/jobs/": []}.get(self.path)
        status = 401 if not is_allowed else 404 if body is None else 200
        self.send_response(self.server.jobs_status if self.path == "/api/jobs/" and status == 200 else status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time() + self.server.seconds_ahead, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with Dashboard(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_cluster_that_takes_jobs(dashboard: Dashboard) -> None:
    (found,) = check_cluster(f"{dashboard.url}/", ALLOWED)
    assert (found.state, found.found) == ("ok", f"{dashboard.url} runs Ray 2.60.0, and takes jobs")


def test_a_cluster_of_another_ray(dashboard: Dashboard) -> None:
    dashboard.ray_version = "2.9.3"
    (found,) = check_cluster(dashboard.url, ALLOWED)
    assert (found.state, found.found) == ("failure", f"{dashboard.url} runs Ray 2.9.3, allowed is <3,>=2.60")


def test_a_server_that_is_no_dashboard(dashboard: Dashboard) -> None:
    dashboard.jobs_status = 503
    (found,) = check_cluster(dashboard.url, ALLOWED)
    assert found.state == "failure" and "not as the Jobs API of Ray (status 503)" in found.found
    dashboard.jobs_status, dashboard.ray_version = 200, "a nightly"
    (found,) = check_cluster(dashboard.url, ALLOWED)
    assert found.state == "failure" and "does not tell its version" in found.found


def test_a_cluster_that_wants_a_token(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = "the word"
    (found,) = check_cluster(dashboard.url, ALLOWED)
    assert found.state == "failure" and "RAY_AUTH_TOKEN" in found.advice
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the word")
    (found,) = check_cluster(dashboard.url, ALLOWED)
    assert found.state == "ok"


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:{}"])
def test_nobody_there(form: str, closed_port: int) -> None:
    address = form.format(closed_port)
    (found,) = check_cluster(address, ALLOWED)
    assert (found.state, found.found) == ("failure", f"{address} does not answer: Connection refused")
    assert "kubectl port-forward" in found.advice


def test_a_proxy_is_named_where_there_is_one(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    (found,) = check_cluster("http://head.invalid:8265", ALLOWED)
    assert found.advice.endswith("add head.invalid to no_proxy")


def test_a_port_that_is_open(dashboard: Dashboard) -> None:
    address = dashboard.url.removeprefix("http://")
    (found,) = check_cluster(address, ALLOWED)
    assert (found.state, found.found) == ("ok", f"{address} takes connections")


@pytest.mark.parametrize("address", ["head", "ray://", "head:http"])
def test_what_is_no_address(address: str) -> None:
    (found,) = check_cluster(address, ALLOWED)
    assert found.state == "failure" and "write http://head:8265" in found.advice


@pytest.mark.parametrize(
    ("seconds", "state", "words"),
    [(0, "ok", " s "), (120, "warning", "s behind"), (-120, "warning", "s ahead of"), (2000, "failure", "s behind")],
)
def test_the_clock(dashboard: Dashboard, seconds: float, state: str, words: str) -> None:
    dashboard.seconds_ahead = seconds
    found = check_clock(dashboard.url)
    assert found.state == state and words in found.found


def test_a_clock_that_cannot_be_compared(closed_port: int) -> None:
    found = check_clock(f"http://127.0.0.1:{closed_port}")
    assert found.state == "note" and "Connection refused" in found.found

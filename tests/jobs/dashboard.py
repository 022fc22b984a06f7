"""A small real HTTP server that answers as the dashboard of a Ray 2.60 head does, and remembers what it was asked.

It runs nothing: a submission stays as it is until a test changes it. Web sockets are refused, as by some proxies.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Dashboard:
    """A context manager; what tests may look at and change."""

    nodes: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 4.0}])
    has_autoscaler: bool = False
    token: str | None = None
    jobs: dict[str, dict[str, object]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Dashboard:
        handler = type("Handler", (_Handler,), {"dashboard": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def end(self, submission_id: str, status: str, exit_code: int | None = None) -> None:
        """A job has ended."""
        self.jobs[submission_id] |= {"status": status, "driver_exit_code": exit_code, "end_time": 1_763_000_060_000}

    def submit(self, request: dict[str, object]) -> tuple[int, object]:
        """As Ray's job manager."""
        submission_id = str(request["submission_id"])
        if submission_id in self.jobs:
            text = f"Traceback ...\nValueError: Job with submission_id {submission_id} already exists."
            return 400, text
        started = 1_763_000_000_000 + len(self.jobs)
        self.jobs[submission_id] = {**request, "status": "RUNNING", "type": "SUBMISSION", "start_time": started}
        return 200, {"job_id": submission_id, "submission_id": submission_id}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Status and content, which is JSON unless it is a text."""
        self.requests.append(f"{method} {path}")
        package = re.fullmatch(r"/api/packages/gcs/(\w+\.zip)", path)
        job = re.fullmatch(r"/api/jobs/([^/]+)(/logs|/stop)?", path)
        if package and method == "PUT":
            self.packages[package[1]] = body
            return 200, ""
        if package:
            return (200, "") if package[1] in self.packages else (404, "does not exist")
        if (method, path) == ("POST", "/api/jobs/"):
            return self.submit(json.loads(body))
        if job:
            return self._about(job[1], job[2])
        types = {"10.0.0.1": "ray.worker.default" if self.has_autoscaler else "node_1d8bd9346ef85b5a"}
        fixed: dict[str, object] = {
            "/api/jobs/": [*self.jobs.values(), {"type": "DRIVER", "status": "RUNNING", "submission_id": None}],
            "/api/v0/nodes?limit=10000": {"data": {"result": {"result": self._node_states()}}},
            "/api/cluster_status": {"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": types}}}},
        }
        return (200, fixed[path]) if path in fixed else (404, "404: Not Found")

    def _about(self, submission_id: str, what: str | None) -> tuple[int, object]:
        if submission_id not in self.jobs:
            return 404, f"Job {submission_id} does not exist"
        if what == "/logs":
            return 200, {"logs": self.logs.get(submission_id, "")}
        if what == "/stop":
            self.end(submission_id, "STOPPED")
            return 200, {"stopped": True}
        return 200, self.jobs[submission_id]

    def _node_states(self) -> list[dict[str, object]]:
        states: list[dict[str, object]] = [{"state": "ALIVE", "resources_total": node} for node in self.nodes]
        return [*states, {"state": "DEAD", "resources_total": {"CPU": 64.0}}]


class _Handler(BaseHTTPRequestHandler):
    dashboard: Dashboard

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.dashboard.token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            status, content = 401, "Unauthorized: Missing authentication token"
        else:
            status, content = self.dashboard.answer(self.command, self.path, body)  # type: ignore[assignment]
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

"""A real MLflow server on this machine, for tests, and what it holds by its own HTTP interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_SECONDS = 120.0


@dataclass(frozen=True)
class RunThere:
    """A run as the server tells it."""

    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]


class MlflowServer:
    """Keeps its data in `folder` with SQLite, so that it may die and start again."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        words = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--host", "127.0.0.1"]
        words += ["--default-artifact-root", str(self._folder), "--port", str(self._port), "--workers", "1"]
        search = f"{self._program.parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": search, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "server", *words],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._folder,
                start_new_session=True,
            )
        self.wait_until(self._answers)

    def stop(self) -> None:
        """At once, with all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Look until something is so."""
        ends_at = time.monotonic() + START_SECONDS
        while not is_so():
            assert self._process is not None and self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < ends_at
            time.sleep(0.1)

    def run(self, run_id: str) -> RunThere:
        """What the server knows of a run, but its metrics."""
        run = self._get(f"runs/get?run_id={run_id}")["run"]
        params, tags = ({one["key"]: one["value"] for one in run["data"][kind]} for kind in ("params", "tags"))
        return RunThere(run["info"]["run_name"], run["info"]["status"], params, tags)

    def points(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Step and value of all points of a metric, in the order of time."""
        found = self._get(f"metrics/get-history?run_id={run_id}&metric_key={quote(key, safe='')}").get("metrics", [])
        return [(int(point["step"]), float(point["value"])) for point in found]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/2.0/mlflow/{path}", timeout=20) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return True
        except OSError:
            return False

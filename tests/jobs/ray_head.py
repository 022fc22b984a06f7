"""A Ray cluster of one node as an operator starts it, `ray start --head`, with its dashboard, on ports of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 120.0
END_SECONDS = 30.0
ANSWER_SECONDS = 60.0
_PORT_OPTIONS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)


class RayHeadError(RuntimeError):
    """The cluster could not be started."""


@dataclass(frozen=True)
class RayHead:
    """A running cluster."""

    url: str
    """Of its dashboard."""
    folder: Path
    """Where it keeps its session: logs, unpacked packages."""


@contextmanager
def open_ray_head(environment: Mapping[str, str], num_cpus: int) -> Iterator[RayHead]:
    """A head whose processes see this environment; it asks for the `RAY_AUTH_TOKEN` that is in it.

    Raises `RayHeadError` with the end of its output.
    """
    # The path of Ray's sockets is bounded, so its folder has a short name.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ExitStack() as end,
    ):
        ports = dict(zip(_PORT_OPTIONS, _free_ports(len(_PORT_OPTIONS)), strict=True))
        head = RayHead(f"http://127.0.0.1:{ports['dashboard-port']}", Path(folder))
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--num-cpus={num_cpus}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        command += [f"--temp-dir={folder}/t", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        command += ["--disable-usage-stats", "--block"]
        output = Path(folder) / "output"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command,
                env={**environment, "RAY_AUTH_MODE": "token"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end.callback(_end, process)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(head.url, environment["RAY_AUTH_TOKEN"]):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RayHeadError(output.read_text(errors="replace")[-4000:])
            time.sleep(0.2)
        yield head


def ask(url: str, token: str) -> bytes:
    """What the dashboard answers. Raises `OSError`."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return bytes(answer.read())


def _answers(url: str, token: str) -> bool:
    """Whether there is a dashboard, and a node that it knows of."""
    try:
        return b'"ALIVE"' in ask(f"{url}/api/v0/nodes", token)
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it has started: to end by itself takes Ray half a minute."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(started, END_SECONDS)

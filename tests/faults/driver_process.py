"""`llmforge train` as a person starts it: a process of its own, with a Ray of its own, whose output is followed.

In: a job file, overrides, an environment. Out: the lines of its output as they come, the processes that it has started,
and at the end the certainty that none of them is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY

WORKER_TITLE = "ray::RayTrainWorker"
_GONE_SECONDS = 20.0
"""Processes whose driver is dead are given so long to end by themselves."""
_POLL_SECONDS = 0.1
_NUM_TOLD_LINES = 40


class DriverError(AssertionError):
    """The driver did not do what was waited for; the message ends with its last lines."""


@dataclass(frozen=True)
class Line:
    """One line of the driver's output."""

    text: str
    at: float
    """By `time.monotonic`."""


@dataclass(frozen=True)
class Hit:
    """A line that was looked for, with the groups of the expression."""

    text: str
    at: float
    groups: tuple[str, ...]


class DriverProcess:
    """A context manager: the process runs inside the block, and whatever is left of it ends with the block."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """`arguments`: behind `llmforge train`. `folder`: the working folder."""
        self._arguments = arguments
        self._environment = environment
        self._folder = folder
        self._lines: list[Line] = []
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> DriverProcess:
        # The path of Ray's sockets is bounded, so its folder has a short name.
        self._ray_folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name("llmforge")), "train", *self._arguments],
            env={"RAY_TMPDIR": self._ray_folder.name, **self._environment},
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._ray_folder.cleanup()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines(self) -> tuple[Line, ...]:
        """All that it has said so far."""
        return tuple(self._lines)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def hits(self, pattern: str, since: float = 0.0) -> list[Hit]:
        """The lines since a time that fit a regular expression from their first character on."""
        found = [(line, re.match(pattern, line.text)) for line in self.lines if line.at >= since]
        return [Hit(line.text, line.at, match.groups()) for line, match in found if match is not None]

    def wait_for(self, pattern: str, seconds: float, since: float = 0.0) -> Hit:
        """The first line since a time that fits. Raises `DriverError` if none comes in time, or the driver ends."""
        self.wait_until(lambda: bool(self.hits(pattern, since)), seconds, f"no line {pattern!r}")
        return self.hits(pattern, since)[0]

    def wait_until(self, is_true: Callable[[], bool], seconds: float, problem: str) -> None:
        """Raises `DriverError` with the `problem` if it is not true in time, or never will be."""
        deadline = time.monotonic() + seconds
        while not is_true():
            if self.exit_code is not None:
                self._reader.join()
                if is_true():
                    return
                raise DriverError(f"{problem}: the driver has ended with {self.exit_code}\n{self.told()}")
            if time.monotonic() > deadline:
                raise DriverError(f"{problem} within {seconds:g} s\n{self.told()}")
            time.sleep(_POLL_SECONDS)

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended by itself."""
        deadline = time.monotonic() + seconds
        while self.exit_code is None:
            if time.monotonic() > deadline:
                raise DriverError(f"the driver has not ended within {seconds:g} s\n{self.told()}")
            time.sleep(_POLL_SECONDS)
        self._reader.join()
        return self._process.returncode

    def told(self) -> str:
        """Its last lines."""
        return "\n".join(line.text for line in self.lines[-_NUM_TOLD_LINES:])

    def workers(self) -> list[psutil.Process]:
        """The processes of the Ray Train workers, the oldest first."""
        found = [process for process in self.processes() if _title(process).startswith(WORKER_TITLE)]
        return sorted(found, key=lambda process: process.create_time())

    def processes(self) -> list[psutil.Process]:
        """All that the driver has started and that are still there, without itself."""
        for process in (*_children(self.pid), *_processes_of(Path(self._ray_folder.name))):
            self._seen.setdefault(process.pid, process)
        return [process for process in self._seen.values() if _is_alive(process)]

    def send(self, signal_number: signal.Signals) -> None:
        """A signal to the driver alone, as a terminal's Ctrl-C or `kill` would send it."""
        self._process.send_signal(signal_number)

    def kill(self) -> None:
        """SIGKILL to the driver alone; returns when nothing that it has started is left.

        Ray's own processes end when their driver does; those that do not in time are killed.
        """
        self.processes()
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while left := self.processes():
            if time.monotonic() > deadline:
                for process in left:
                    kill(process)
            time.sleep(_POLL_SECONDS)

    def _read(self, stream: IO[str]) -> None:
        for text in stream:
            self._lines.append(Line(text.rstrip("\n"), time.monotonic()))


def driver_environment(repository: Path, scratch: Path, endpoint_url: str, num_cpus: int = 2) -> dict[str, str]:
    """For a driver that knows only the test server at `endpoint_url`, and leaves its files below `scratch`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    temporary = scratch / "tmp"
    temporary.mkdir(exist_ok=True)
    return kept | {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(scratch / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(scratch / "no-aws-credentials"),
        "LLMFORGE_CACHE": str(scratch / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": num_cpus}),
        "TMPDIR": str(temporary),
    }


def kill(process: psutil.Process) -> None:
    """SIGKILL; nothing where it has just ended by itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Those whose output goes to a file in it: all that a Ray with this RAY_TMPDIR has started, orphans too."""
    found = []
    for process in psutil.process_iter():
        try:
            target = os.readlink(f"/proc/{process.pid}/fd/2")
        except OSError:  # it has ended, or is another user's
            continue
        if Path(target).is_relative_to(folder):
            found.append(process)
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still does something: one that has ended may wait for a parent to be told of it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""A real S3 server for tests: OpenStack Swift with its S3 API, on loopback ports, keeping its data in one folder.

It runs from a virtual environment of its own (`pip install swift==2.38.3`), checks signatures and checksums, and
survives `kill -9` with open multipart uploads. As a program, it prints its URL and serves until it is told to stop:
`python tests/s3_server.py BIN_FOLDER DATA_FOLDER`.
"""

from __future__ import annotations

import contextlib
import getpass
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ACCESS_KEY = "test:tester"
SECRET_KEY = "testsecretkey"
REGION = "us-east-1"
LISTING_PAGE = 40
"""Objects in one answer to a listing; few, so that a test soon has more than one."""

_STORES = ("object", "container", "account")
_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "s3api", "tempauth", "copy", "slo", "dlo", "symlink")
_START_SECONDS = 60.0


class S3ServerError(RuntimeError):
    """The server could not be started."""


@dataclass
class S3Server:
    """Four processes (one for requests, three for data) on neighbouring ports; may be killed and started again."""

    bin_folder: Path
    """`bin` of the virtual environment that has Swift."""
    root: Path
    """Configuration, data and logs; made if missing, kept between starts."""
    port: int = field(default_factory=lambda: _free_ports(1 + len(_STORES)))
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _etc(self) -> Path:
        return self.root / "etc"

    def start(self) -> S3Server:
        """Serve; returns when the server answers. Raises `S3ServerError` with the end of its log."""
        if not self._etc.exists():
            self._configure()
        # The proxy shuns for a minute whom it has failed to reach a few times, so it begins when the others serve.
        for kind in _STORES:
            self._launch(kind)
        for offset, kind in enumerate(_STORES, start=1):
            self._wait(kind, partial(_accepts, self.port + offset))
        self._launch("proxy")
        self._wait("proxy", self._answers)
        return self

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        """End all processes and wait for them; SIGKILL leaves the data as a crash would."""
        for process in self._processes:
            process.send_signal(signal_number)
        for process in self._processes:
            process.wait(timeout=20)
        self._processes.clear()

    def _launch(self, kind: str) -> None:
        with (self.root / f"{kind}.log").open("ab") as log:
            command = [self.bin_folder / f"swift-{kind}-server", self._etc / f"{kind}.conf"]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

    def _wait(self, kind: str, serves: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and all(process.poll() is None for process in self._processes):
            if serves():
                return
            time.sleep(0.1)
        self.stop(signal.SIGKILL)
        log = (self.root / f"{kind}.log").read_text()
        raise S3ServerError(f"{kind} does not serve for {self.url}; its log ends:\n{log[-2000:]}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            # A refusal is an answer.
            error.close()
            return True
        except OSError:
            return False

    def _configure(self) -> None:
        self._etc.mkdir(parents=True)
        (self.root / "srv/d1").mkdir(parents=True)
        (self._etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix=a\nswift_hash_path_prefix=b\n[storage-policy:0]\nname=p0\ndefault=yes\n"
        )
        for offset, kind in enumerate(_STORES, start=1):
            self._make_ring(kind, self.port + offset)
            (self._etc / f"{kind}.conf").write_text(
                self._defaults(self.port + offset)
                + f"devices={self.root}/srv\nmount_check=false\n"
                + f"[pipeline:main]\npipeline={kind}-server\n[app:{kind}-server]\nuse=egg:swift#{kind}\n"
            )
        options = {
            "s3api": f"location={REGION}\nmax_bucket_listing={LISTING_PAGE}\n",
            "tempauth": f"user_test_tester={SECRET_KEY} .admin\n",
        }
        filters = "".join(f"[filter:{name}]\nuse=egg:swift#{name}\n{options.get(name, '')}" for name in _FILTERS)
        (self._etc / "proxy.conf").write_text(
            self._defaults(self.port)
            + f"[pipeline:main]\npipeline={' '.join(_FILTERS)} proxy-server\n"
            + f"[app:proxy-server]\nuse=egg:swift#proxy\naccount_autocreate=true\n{filters}"
        )

    def _defaults(self, port: int) -> str:
        user = getpass.getuser()
        return f"[DEFAULT]\nswift_dir={self._etc}\nbind_ip=127.0.0.1\nbind_port={port}\nuser={user}\nworkers=0\n"

    def _make_ring(self, kind: str, port: int) -> None:
        """One copy of everything, on the one device."""
        builder = self._etc / f"{kind}.builder"
        for arguments in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            command: list[str | Path] = [self.bin_folder / "swift-ring-builder", builder, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on.

    Taken at random, below the range from which the system hands out ports: two servers that start at the same time
    would otherwise find the same ones free.
    """
    for first in random.sample(range(20000, 32000, 10), k=200):
        with contextlib.ExitStack() as sockets:
            try:
                for port in range(first, first + count):
                    sockets.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise S3ServerError(f"no {count} neighbouring ports are free between 20000 and 32000")


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    signals = {signal.SIGTERM, signal.SIGINT}
    server = S3Server(Path(sys.argv[1]), Path(sys.argv[2])).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    signal.sigwait(signals)
    server.stop()


if __name__ == "__main__":
    main()

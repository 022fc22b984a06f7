"""A TCP proxy on a loopback port that the tests steer: it passes, refuses, breaks, slows down or stalls connections.

It runs in threads of its own and knows nothing of what it carries, but for counting the bytes of either direction.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

_READ_BYTES = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_POLL_SECONDS = 0.02

Direction = Literal["requests", "answers"]


@dataclass(frozen=True)
class Fault:
    """What happens to connections; nothing by itself."""

    kind: Literal["refuse", "reset", "stall"] | None = None
    """`refuse` breaks them at once, `reset` beyond `after_bytes`, and `stall` holds them there."""
    after_bytes: int = 0
    """Of the direction `of`, in one connection."""
    of: Direction = "answers"
    times: int | None = None
    """How many connections are refused or reset. Default: all."""
    bytes_per_second: int | None = None
    """Of the answers of each connection."""


@dataclass
class ChaosProxy:
    """Between clients and the server at `target_port` of this machine; begins by passing everything on."""

    target_port: int
    num_connections: int = field(default=0, init=False)
    num_faults: int = field(default=0, init=False)
    _fault: Fault = field(default_factory=Fault, init=False)
    _listener: socket.socket = field(init=False)
    _sockets: set[socket.socket] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _is_stopped: bool = field(default=False, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def set(self, fault: Fault) -> None:
        """From now on, also for connections that are open; counts `num_faults` anew."""
        with self._lock:
            self._fault, self.num_faults = fault, 0

    @contextmanager
    def running(self) -> Iterator[ChaosProxy]:
        """Serve until the block ends."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=self._accept)
        thread.start()
        try:
            yield self
        finally:
            self._is_stopped = True
            self._listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            self._listener.close()

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # stopped
                break
            threads.append(threading.Thread(target=self._connect, args=(client,)))
            threads[-1].start()
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _connect(self, client: socket.socket) -> None:
        self.num_connections += 1
        if self._fault.kind == "refuse" and self._take_fault():
            _reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port))
        except OSError:  # it is down
            _reset(client)
            return
        pair = {client, server}
        with self._lock:
            self._sockets |= pair
        answers = threading.Thread(target=self._carry, args=(server, client, "answers"))
        answers.start()
        self._carry(client, server, "requests")
        answers.join()
        with self._lock:
            self._sockets -= pair
        client.close()
        server.close()

    def _carry(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        num_bytes = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_READ_BYTES):
                num_bytes += len(data)
                if self._is_due("reset", direction, num_bytes) and self._take_fault():
                    for one in (source, target):
                        _reset(one)
                    return
                while self._is_due("stall", direction, num_bytes) and not self._is_stopped:
                    time.sleep(_POLL_SECONDS)
                rate = self._fault.bytes_per_second
                if rate is not None and direction == "answers":
                    time.sleep(len(data) / rate)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _is_due(self, kind: str, direction: Direction, num_bytes: int) -> bool:
        fault = self._fault
        return fault.kind == kind and fault.of == direction and num_bytes > fault.after_bytes

    def _take_fault(self) -> bool:
        with self._lock:
            if self._fault.times is not None and self.num_faults >= self._fault.times:
                return False
            self.num_faults += 1
            return True


def _reset(connection: socket.socket) -> None:
    """Close so that the other side gets an error and no end of the data, and wake who waits for it here."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RD)
    connection.close()

"""An HTTP proxy on a loopback port that the tests steer: it passes requests on, breaks, slows down or stalls them, or
answers them with an error of its own.

It runs in threads of its own. Of HTTP/1.1 it knows how to tell where a request ends, so that a fault can be meant for
some requests of a connection and not for others; of what they carry it knows nothing. It answers `Expect: 100-continue`
itself, so that the body of a request always follows its head.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
from typing import Literal

_READ_BYTES = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_POLL_SECONDS = 0.02
_ERRORS = {500: ("Internal Server Error", "InternalError"), 503: ("Slow Down", "SlowDown")}
"""Words of the status line, and the code that S3 gives in its body."""

Direction = Literal["requests", "answers"]


@dataclass(frozen=True)
class Fault:
    """What happens to requests; nothing by itself."""

    kind: Literal["refuse", "reset", "stall", "error"] | None = None
    """`refuse` breaks new connections at once, and open ones at their next bytes; `reset` breaks a connection beyond
    `after_bytes`, and `stall` holds it there; `error` answers in place of the server."""
    after_bytes: int = 0
    """Of the direction `of`, in one request with its head, or in its answer."""
    of: Direction = "answers"
    """The direction in which `reset`, `stall` and `bytes_per_second` work."""
    status: Literal[500, 503] = 503
    """Of an `error`."""
    only: str = ""
    """Words in the first line of a request, such as `PUT ` or `uploadId=`: all others pass. Not for `refuse`."""
    probability: float = 1.0
    """That a request is one of those that the fault is meant for. Not for `refuse`."""
    times: int | None = None
    """How many requests (of `refuse`: connections) are broken or answered. Default: all. Not for `stall`."""
    bytes_per_second: int | None = None
    """Of each connection."""


@dataclass
class _Exchange:
    """The request of one connection that is under way, and its answer."""

    first_line: str = ""
    draw: float = 0.0
    """Compared with the probability of a fault."""
    num_bytes: dict[Direction, int] = field(default_factory=lambda: {"requests": 0, "answers": 0})

    def begin(self, first_line: str, draw: float) -> None:
        """The next request: a client sends it once it has the answer to the one before."""
        self.first_line, self.draw = first_line, draw
        self.num_bytes = {"requests": 0, "answers": 0}


@dataclass
class ChaosProxy:
    """Between clients and the server at `target_port` of this machine; begins by passing everything on."""

    target_port: int
    seed: int = 0
    """Decides which requests a fault with a probability is meant for."""
    num_connections: int = field(default=0, init=False)
    num_faults: int = field(default=0, init=False)
    _fault: Fault = field(default_factory=Fault, init=False)
    _random: random.Random = field(init=False)
    _listener: socket.socket = field(init=False)
    _sockets: set[socket.socket] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _is_stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

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
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
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
        threads: list[threading.Thread] = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # stopped
                break
            threads = [thread for thread in threads if thread.is_alive()]
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
        if self._fault.kind == "refuse" and self._take_fault(self._fault):
            _reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port))
        except OSError:  # it is down
            _reset(client)
            return
        pair, exchange = {client, server}, _Exchange()
        for one in pair:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= pair
        answers = threading.Thread(target=self._carry_answers, args=(server, client, exchange))
        answers.start()
        self._carry_requests(client, server, exchange)
        answers.join()
        with self._lock:
            self._sockets -= pair
        client.close()
        server.close()

    def _carry_answers(self, server: socket.socket, client: socket.socket, exchange: _Exchange) -> None:
        with _ending(server, client):
            while data := server.recv(_READ_BYTES):
                self._disturb("answers", exchange, len(data))
                client.sendall(data)

    def _carry_requests(self, client: socket.socket, server: socket.socket, exchange: _Exchange) -> None:
        with _ending(client, server), client.makefile("rb") as stream:
            while head := list(_head(stream)):
                with self._lock:
                    exchange.begin(head[0].decode("latin-1"), self._random.random())
                if "100-continue" in _field(head, "expect"):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                fault = self._fault
                if fault.kind == "error" and self._is_meant(fault, exchange) and self._take_fault(fault):
                    deque(_body(stream, head), maxlen=0)
                    client.sendall(_error(fault.status, with_body=not head[0].startswith(b"HEAD ")))
                    continue
                passed = b"".join(line for line in head if not line.lower().startswith(b"expect:"))
                for data in chain([passed], _body(stream, head)):
                    self._disturb("requests", exchange, len(data))
                    server.sendall(data)

    def _disturb(self, direction: Direction, exchange: _Exchange, num_bytes: int) -> None:
        """Take the time that the next bytes need, or raise where they do not get through."""
        exchange.num_bytes[direction] += num_bytes
        fault = self._fault
        is_broken = fault.kind == "refuse" or self._is_due("reset", direction, exchange)
        if is_broken and self._take_fault(fault):
            raise ConnectionAbortedError
        while self._is_due("stall", direction, exchange):
            if self._is_stopped:
                raise ConnectionAbortedError
            time.sleep(_POLL_SECONDS)
        rate = self._fault.bytes_per_second
        if rate is not None and self._fault.of == direction and self._is_meant(self._fault, exchange):
            time.sleep(num_bytes / rate)

    def _is_due(self, kind: str, direction: Direction, exchange: _Exchange) -> bool:
        fault = self._fault
        reached = fault.of == direction and exchange.num_bytes[direction] > fault.after_bytes
        return fault.kind == kind and reached and self._is_meant(fault, exchange)

    def _is_meant(self, fault: Fault, exchange: _Exchange) -> bool:
        return fault.only in exchange.first_line and exchange.draw < fault.probability

    def _take_fault(self, fault: Fault) -> bool:
        with self._lock:
            if fault.times is not None and self.num_faults >= fault.times:
                return False
            self.num_faults += 1
            return True


def _head(stream: BufferedReader) -> Iterator[bytes]:
    """The lines of the next request's head, with the empty one; none at the end of the connection."""
    while line := stream.readline():
        yield line
        if not line.strip():
            return


def _body(stream: BufferedReader, head: list[bytes]) -> Iterator[bytes]:
    """The body of a request in pieces, as they come, with the marks of its chunks where it has some."""
    if "chunked" not in _field(head, "transfer-encoding"):
        yield from _pieces(stream, int(_field(head, "content-length") or 0))
        return
    num_bytes = -1
    while num_bytes != 0:
        mark = stream.readline()
        if not mark:
            raise ConnectionAbortedError
        yield mark
        num_bytes = int(mark.split(b";")[0], 16)
        if num_bytes > 0:
            yield from _pieces(stream, num_bytes + len(b"\r\n"))
    yield from _head(stream)  # fields behind the last chunk, such as a checksum


def _pieces(stream: BufferedReader, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        data = stream.read1(min(num_bytes, _READ_BYTES))
        if not data:
            raise ConnectionAbortedError
        num_bytes -= len(data)
        yield data


def _field(head: list[bytes], name: str) -> str:
    """The value of a field of the head, in lower case; empty where there is none."""
    fields = (line.decode("latin-1").partition(":") for line in head[1:])
    return next((value.strip().lower() for key, _, value in fields if key.lower() == name), "")


def _error(status: int, *, with_body: bool) -> bytes:
    words, code = _ERRORS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (body if with_body else b"")


@contextmanager
def _ending(source: socket.socket, target: socket.socket) -> Iterator[None]:
    """Hand on the end of what `source` sends; where it is cut short, break the connection on both sides."""
    try:
        yield
        target.shutdown(socket.SHUT_WR)
    except (OSError, ValueError):  # broken here, by the other thread, by a client or server that was killed
        for one in (source, target):
            _reset(one)


def _reset(connection: socket.socket) -> None:
    """Close so that the other side gets an error and no end of the data, and wake who waits for it here."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RD)
    connection.close()

"""The faults of the proxy, between a plain HTTP client and a small server that keeps what it is sent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos_proxy import ChaosProxy, Fault

BODY = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.server.broken.release()

    def do_PUT(self) -> None:
        self.server.heads.append(str(self.headers))
        self.server.files[self.path] = self._chunks() if "chunked" in str(self.headers) else self._whole()
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.server.files[self.path])

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _whole(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _chunks(self) -> bytes:
        data = b""
        while num_bytes := int(self.rfile.readline(), 16):
            data += self.rfile.read(num_bytes)
            self.rfile.readline()
        self.rfile.readline()
        return data


class Server(ThreadingHTTPServer):
    """Serves what was put."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.heads: list[str] = []
        self.broken = threading.Semaphore(0)
        """Counts connections that did not end, but broke."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.server_port).running() as running:
        yield running


@pytest.fixture
def client(proxy: ChaosProxy) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def put(client: HTTPConnection, path: str, body: bytes | Iterator[bytes] = BODY) -> int:
    client.request("PUT", path, body=body, encode_chunked=isinstance(body, Iterator))
    with client.getresponse() as answer:
        answer.read()
        return answer.status


def get(client: HTTPConnection, path: str, method: str = "GET") -> tuple[int, bytes]:
    client.request(method, path)
    with client.getresponse() as answer:
        return answer.status, answer.read()


def test_it_passes_requests_of_one_connection_on(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    assert put(client, "/whole") == 200
    assert put(client, "/chunks", iter([b"one", BODY, b"two"])) == 200
    assert get(client, "/whole") == (200, BODY)
    assert get(client, "/chunks") == (200, b"one" + BODY + b"two")
    assert (proxy.num_connections, proxy.num_faults) == (1, 0)


def test_errors_in_place_of_the_server(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    """The connection stays in step, whatever bodies the refused requests had."""
    proxy.set(Fault("error", only="PUT ", times=3))
    assert [put(client, "/a"), put(client, "/b", iter([BODY, BODY]))] == [503, 503]
    server.files["/c"] = b"there"
    assert get(client, "/c") == (200, b"there")
    assert [put(client, "/d"), put(client, "/e")] == [503, 200]
    assert list(server.files) == ["/c", "/e"]
    proxy.set(Fault("error", status=500))
    status, body = get(client, "/c")
    assert status == 500
    assert b"<Code>InternalError</Code>" in body
    assert get(client, "/c", "HEAD") == (500, b"")
    proxy.set(Fault())
    assert get(client, "/c") == (200, b"there")
    assert proxy.num_connections == 1


@pytest.mark.parametrize("fault", [Fault(), Fault("error", times=1)])
def test_a_body_that_waits_for_the_word_to_go_on(fault: Fault, proxy: ChaosProxy, server: Server) -> None:
    proxy.set(fault)
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), timeout=10) as connection:
        stream = connection.makefile("rb")
        for status, path in ((200 if fault.kind is None else 503, "/a"), (200, "/b")):
            connection.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode()
            )
            assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert stream.readline() == b"\r\n"
            connection.sendall(b"body")
            assert stream.readline().split()[1] == str(status).encode()
            num_bytes = 0
            while line := stream.readline().strip().lower():
                if line.startswith(b"content-length: "):
                    num_bytes = int(line.split()[1])
            stream.read(num_bytes)
        stream.close()
    assert server.files["/b"] == b"body"
    assert not any("Expect" in head for head in server.heads)


def test_an_upload_broken_in_the_middle(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    proxy.set(Fault("reset", of="requests", after_bytes=100_000, only="/b", times=1))
    assert put(client, "/a") == 200
    with pytest.raises(ConnectionError):
        put(client, "/b")
    client.close()
    assert put(client, "/b", b"small") == 200
    assert put(client, "/c") == 200
    assert proxy.num_faults == 1
    assert server.files == {"/a": BODY, "/b": b"small", "/c": BODY}


def test_an_answer_that_is_lost(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    """The server has done what it was asked for."""
    proxy.set(Fault("reset", times=1))
    with pytest.raises(ConnectionError):
        put(client, "/a")
    client.close()
    assert get(client, "/a") == (200, BODY)


def test_an_answer_broken_in_the_middle(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    server.files["/a"] = BODY
    proxy.set(Fault("reset", after_bytes=len(BODY) // 2))
    with pytest.raises(ConnectionError):
        get(client, "/a")
    client.close()
    server.files["/a"] = BODY[:1000]
    assert get(client, "/a") == (200, BODY[:1000])


def test_a_stalled_upload_goes_on_when_the_fault_ends(
    client: HTTPConnection, proxy: ChaosProxy, server: Server
) -> None:
    proxy.set(Fault("stall", of="requests", after_bytes=100_000))
    statuses: list[int] = []
    writer = threading.Thread(target=lambda: statuses.append(put(client, "/a")))
    writer.start()
    writer.join(timeout=0.2)
    assert (statuses, server.files) == ([], {})
    proxy.set(Fault())
    writer.join()
    assert (statuses, server.files) == ([200], {"/a": BODY})


def test_slow_requests_and_slow_answers(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    server.files["/b"] = b"other"
    proxy.set(Fault(of="requests", bytes_per_second=len(BODY) * 5, only="PUT "))
    began_at = time.monotonic()
    assert put(client, "/a") == 200
    assert time.monotonic() - began_at > 0.2
    proxy.set(Fault(bytes_per_second=len(BODY) * 5))
    began_at = time.monotonic()
    assert get(client, "/a") == (200, BODY)
    assert time.monotonic() - began_at > 0.2


def test_refused_connections(client: HTTPConnection, proxy: ChaosProxy, server: Server) -> None:
    """New ones, and one that was open."""
    server.files["/a"] = b"there"
    assert get(client, "/a") == (200, b"there")
    proxy.set(Fault("refuse", times=2))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            get(client, "/a")
        client.close()
    assert get(client, "/a") == (200, b"there")
    assert proxy.num_faults == 2


def test_a_server_that_is_down(proxy: ChaosProxy, client: HTTPConnection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        proxy.target_port = unused.getsockname()[1]
    with pytest.raises(ConnectionError):
        get(client, "/a")


def test_a_client_that_dies_while_it_sends(proxy: ChaosProxy, server: Server) -> None:
    """The server learns of it, and the proxy does not wait for what will never come."""
    for request in (
        b"PUT /a HTTP/1.1\r\nContent-Length: 1000\r\n\r\nfirst bytes",
        b"PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nfirst bytes",
    ):
        with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as connection:
            connection.sendall(request)
        assert server.broken.acquire(timeout=10)
    assert server.files == {}


def test_a_probability_follows_from_the_seed(server: Server) -> None:
    server.files["/a"] = b"there"
    runs = []
    for seed in (1, 1, 2):
        with ChaosProxy(server.server_port, seed=seed).running() as proxy:
            proxy.set(Fault("error", probability=0.25))
            client = HTTPConnection(proxy.url.removeprefix("http://"))
            runs.append([get(client, "/a")[0] for _ in range(100)])
            client.close()
            assert proxy.num_faults == runs[-1].count(503)
    assert runs[0] == runs[1] != runs[2]
    assert all(10 <= run.count(503) <= 40 for run in runs)

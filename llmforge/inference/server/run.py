"""A server process: from loaded models to an address, until it is told to stop.

In: models and options. Out: nothing; it returns when the server has been drained. The engine and the event loop have a
thread each, so that the main thread only waits for signals.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import uvicorn

from llmforge.errors import ConfigError
from llmforge.inference.server.app import make_app
from llmforge.inference.server.connections import TimedConnection
from llmforge.inference.server.models import LoadedModels
from llmforge.inference.server.service import Service
from llmforge.inference.server.stop_signals import POLL_SECONDS, stop_signals

_LAST_WORDS_SECONDS = 5
"""How long replies that are complete or cut off may take to be sent."""


@dataclass(frozen=True)
class ServerOptions:
    """Where and for whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any that is free."""
    api_key: str | None = None
    max_body_bytes: int = 4 << 20
    drain_seconds: float = 60
    """How long answers that are being made may take when the server is told to stop."""


class Server:
    """Reachable from its making until `close`."""

    def __init__(self, models: LoadedModels, options: ServerOptions) -> None:
        listener = _listen(options.host, options.port)
        self.port: int = listener.getsockname()[1]
        self.service = Service(models.served, models.engine)
        app = make_app(self.service, api_key=options.api_key, max_body_bytes=options.max_body_bytes)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=TimedConnection,
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
            )
        )
        self._thread = ThreadPoolExecutor(1, "llmforge-http")
        self.parts: tuple[Future[None], Future[None]] = (
            self.service.engine.start(),
            self._thread.submit(self._uvicorn.run, sockets=[listener]),
        )
        """Engine and HTTP; each ends with the server, and holds the exception where it has failed."""

    def drain(self, seconds: float, hurry: threading.Event) -> None:
        """Take no new requests, and wait until all replies are sent, `seconds` are over, or `hurry` is set."""
        self.service.is_draining = True
        deadline = time.monotonic() + seconds
        while self.service.telemetry.num_open and time.monotonic() < deadline and not hurry.is_set():
            if any(part.done() for part in self.parts):
                return
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Stop at once. Raises what has ended a part before."""
        self.service.close()
        self._uvicorn.should_exit = True
        self._thread.shutdown()
        for part in self.parts:
            part.result()


def serve_until_signal(models: LoadedModels, options: ServerOptions, announce: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. `announce` is given the port.

    To be called in the main thread. Raises `ConfigError` where the address cannot be used.
    """
    server = Server(models, options)
    with stop_signals() as signals:
        for part in server.parts:
            part.add_done_callback(lambda _: signals.stop.set())
        announce(server.port)
        signals.wait()
        server.drain(options.drain_seconds, signals.hurry)
        server.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: found an address that cannot be used: {error.strerror or error}; "
            "stop the program that uses it, or choose another port (0 takes any that is free)"
        ) from error

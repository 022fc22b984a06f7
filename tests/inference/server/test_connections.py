"""Clients that take their time: real connections to uvicorn with our protocol."""

from __future__ import annotations

import asyncio
import time

import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from llmforge.inference.server.connections import TimedConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Hasty(TimedConnection):
    """Waits for a moment only."""

    head_seconds = 0.2


async def exchange(parts: list[bytes], pause_seconds: float) -> tuple[bytes, float]:
    """What comes back for bytes that are sent piece by piece, and how long the connection lasted."""
    config = uvicorn.Config(PlainTextResponse("yes"), lifespan="off", ws="none", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    reading = asyncio.ensure_future(reader.read())
    for part in parts:
        writer.write(part)
        await asyncio.wait([reading], timeout=pause_seconds)
        if reading.done():
            break
    found = await reading
    seconds = time.monotonic() - began
    writer.close()
    server.close()
    return found, seconds


def test_headers_that_come_byte_by_byte_are_not_waited_for() -> None:
    found, seconds = asyncio.run(exchange([bytes([byte]) for byte in REQUEST], 0.02))
    assert (found, 0.2 <= seconds < 0.7) == (b"", True)


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    found, seconds = asyncio.run(exchange([], 0))
    assert (found, 0.2 <= seconds < 0.7) == (b"", True)


def test_requests_in_time_are_answered_however_many_on_one_connection() -> None:
    """Each has its own time."""
    found, seconds = asyncio.run(exchange([REQUEST, REQUEST[:9], REQUEST[9:], LAST_REQUEST], 0.12))
    assert found.count(b"HTTP/1.1 200 OK") == 3
    assert seconds > 0.3

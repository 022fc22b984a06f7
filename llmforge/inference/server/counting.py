"""Counts requests as they end, and those that are open, around the whole application."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmforge.inference.server.telemetry import Telemetry

CLIENT_LEFT = 499
"""What nginx logs where a client did not wait for the answer; nobody reads it."""
_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


class Counting:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it by its path and the status of its reply."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        code = 500

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        self._telemetry.num_open += 1
        try:
            await self._app(scope, receive, counted)
        finally:
            self._telemetry.num_open -= 1
            # Any path may be asked for, and every label is kept for good.
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._telemetry.requests.labels(path, str(code)).inc()

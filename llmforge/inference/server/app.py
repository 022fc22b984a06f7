"""The routes: OpenAI's API, health, metrics and the chat page.

In: HTTP. Out: what a `Service` answers, in OpenAI's shapes; every refusal is an `ApiError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import JsonValue
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llmforge.inference.server.answer import Piece
from llmforge.inference.server.api_errors import ApiError, failed
from llmforge.inference.server.counting import CLIENT_LEFT, Counting
from llmforge.inference.server.guard import Guard
from llmforge.inference.server.page import ChatPage
from llmforge.inference.server.replies import Choice, Reply, model_object
from llmforge.inference.server.requests import ChatRequest, CompletionRequest, parse_request
from llmforge.inference.server.service import Answers, Service

_BODY_SECONDS = 30
"""Longest time in which a body may arrive."""

MetricsText = Callable[[], Awaitable[bytes]]

_Asked = TypeVar("_Asked", ChatRequest, CompletionRequest)


def make_app(
    service: Service, *, api_key: str | None, max_body_bytes: int, metrics: MetricsText | None = None
) -> Starlette:
    """The whole application; `metrics` is for a server that is one of several, None gives those of this one."""
    routes = Routes(service, max_body_bytes, metrics)
    return Starlette(
        routes=[
            Route("/", ChatPage(), methods=["GET"]),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completion, methods=["POST"]),
        ],
        middleware=[Middleware(Counting, telemetry=service.telemetry), Middleware(Guard, api_key=api_key)],
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse_route,
            ClientDisconnect: _nobody_there,
            Exception: _broken,
        },
    )


class Routes:
    """What is done for each path."""

    def __init__(self, service: Service, max_body_bytes: int, metrics: MetricsText | None) -> None:
        self._service = service
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def health(self, _: Request) -> Response:
        """Whether requests should be sent here."""
        if self._service.is_draining:
            return JSONResponse({"status": "draining"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        text = self._service.telemetry.text() if self._metrics is None else await self._metrics()
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def models(self, _: Request) -> Response:
        """All models."""
        found = [model_object(model.name, model.created) for model in self._service.models.values()]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One model."""
        found = self._service.model(request.path_params["name"])
        return JSONResponse(model_object(found.name, found.created))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._answer(request, ChatRequest)

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: type[_Asked]) -> Response:
        asked = parse_request(await _body(request, self._max_body_bytes), kind)
        answers = await self._service.answers(asked)
        reply = Reply(asked.model, answers.model.token_text, kind is ChatRequest, asked.num_top is not None)
        if asked.stream:
            return _EventStream(answers, _events(answers, reply, asked))
        choices = await _unless_left(request, answers, asked.n)
        if choices is None:
            return _nobody_there()
        return _json(reply.whole(choices, answers.usage))


class _EventStream(StreamingResponse):
    """Server-sent events; what is not answered when the client leaves is stopped."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


async def _events(answers: Answers, reply: Reply, asked: ChatRequest | CompletionRequest) -> AsyncIterator[bytes]:
    for index in range(asked.n):
        opening = reply.opening(index)
        if opening is not None:
            yield _event(opening)
    offsets = [0] * asked.n
    try:
        async for index, piece in answers.pieces():
            yield _event(reply.chunk(index, piece, offsets[index]))
            offsets[index] += len(piece.text)
    except ApiError as error:
        yield _event(error.body)
        return
    if asked.stream_options.include_usage:
        yield _event(reply.usage_chunk(answers.usage))
    yield b"data: [DONE]\n\n"


async def _unless_left(request: Request, answers: Answers, num_answers: int) -> list[Choice] | None:
    """The whole answers; None where the client leaves before. Behind a whole body nothing but that can be received."""
    leaving = asyncio.ensure_future(request.receive())
    answering = asyncio.ensure_future(_choices(answers, num_answers))
    try:
        await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        leaving.cancel()
        answering.cancel()
        answers.close()


async def _choices(answers: Answers, num_answers: int) -> list[Choice]:
    pieces: list[list[Piece]] = [[] for _ in range(num_answers)]
    async for index, piece in answers.pieces():
        pieces[index].append(piece)
    return [Choice.of(found) for found in pieces]


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body of a request. Raises `ApiError` where it is none, too large or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A web page of another origin cannot send this type without asking first.
        raise ApiError(415, f"Content-Type: found {kind!r}, allowed is application/json", param="Content-Type")
    try:
        return await asyncio.wait_for(_read(request, max_bytes), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {_BODY_SECONDS} seconds") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise ApiError(413, f"the body is larger than {max_bytes} bytes; shorten the messages")
    return bytes(body)


def _event(value: JsonValue) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _json(value: JsonValue, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    seconds = error.retry_after_seconds
    return _json(error.body, error.status, None if seconds is None else {"Retry-After": str(seconds)})


def _refuse_route(request: Request, error: Exception) -> Response:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    found = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return _json(found.body, found.status, dict(error.headers or {}))


def _broken(*_: object) -> Response:
    """A bug, whose traceback stands in the log."""
    return _json(failed().body, 500)


def _nobody_there(*_: object) -> Response:
    return Response(status_code=CLIENT_LEFT)

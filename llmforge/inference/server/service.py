"""Requests to answers: what lies between the routes and the engine.

In: checked requests, in the event loop. Out: `Answers`, whose pieces arrive there while the engine's thread makes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llmforge.inference.server.answer import Piece
from llmforge.inference.server.api_errors import busy, draining, failed, unknown_model
from llmforge.inference.server.engine import Engine, EngineFullError
from llmforge.inference.server.generation import Deliver, Generation
from llmforge.inference.server.replies import Usage
from llmforge.inference.server.requests import ChatRequest, CompletionRequest
from llmforge.inference.server.served_model import ServedModel
from llmforge.inference.server.telemetry import Telemetry


class Service:
    """The models that are served, and the engine that answers for all of them."""

    def __init__(self, models: Sequence[ServedModel], engine: Engine) -> None:
        self.models = {model.name: model for model in models}
        self.engine = engine
        self.telemetry = Telemetry(lambda: engine.num_running, lambda: engine.num_waiting)
        self.is_draining = False
        """Set when the server is being stopped: what runs may end, nothing new begins."""
        self._tokenizing = ThreadPoolExecutor(1, "llmforge-tokenize")

    def model(self, name: str) -> ServedModel:
        """Raises `ApiError` for a name that nobody serves."""
        if name not in self.models:
            raise unknown_model(name, list(self.models))
        return self.models[name]

    async def answers(self, request: ChatRequest | CompletionRequest) -> Answers:
        """Begin to answer. Raises `ApiError`."""
        arrived = time.perf_counter()
        model = self.model(request.model)
        if self.is_draining:
            raise draining()
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._tokenizing, model.prompt, request)
        return Answers(self, model, request, prompt, arrived)

    def close(self) -> None:
        """End the threads; answers that are not whole fail."""
        self.engine.stop()
        self._tokenizing.shutdown()


class Answers:
    """The answers to one request, to be closed by whoever asked."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        request: ChatRequest | CompletionRequest,
        prompt: list[int],
        arrived: float,
    ) -> None:
        self.model = model
        self._engine = service.engine
        self._telemetry = service.telemetry
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()
        self._num_prompt_tokens = len(prompt)
        self._num_tokens = [0] * request.n
        self._generations: dict[int, Generation] = dict(enumerate(model.generations(request, prompt, self._deliver)))
        """Those that have not ended."""
        try:
            self._engine.submit(list(self._generations.values()))
        except EngineFullError:
            raise busy() from None

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return Usage(self._num_prompt_tokens, sum(self._num_tokens))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(which answer, its next piece), as they come. Raises `ApiError` where the engine ends first."""
        is_first = True
        while self._generations:
            index, piece = await self._pieces.get()
            if piece is None:
                raise failed()
            if is_first:
                self._telemetry.first_token_seconds.observe(time.perf_counter() - self._arrived)
                is_first = False
            self._num_tokens[index] = piece.num_tokens
            if piece.finish_reason is not None:
                del self._generations[index]
                self._telemetry.answers.labels(self.model.name, piece.finish_reason).inc()
            if piece.probabilities is not None:
                self._telemetry.decisions.labels(self.model.name, piece.text).inc()
            yield index, piece

    def close(self) -> None:
        """Stop what is not whole, and count."""
        for generation in self._generations.values():
            self._engine.cancel(generation)
            self._telemetry.answers.labels(self.model.name, "unfinished").inc()
        self._telemetry.prompt_tokens.labels(self.model.name).inc(self._num_prompt_tokens)
        self._telemetry.answer_tokens.labels(self.model.name).inc(self.usage.num_answer_tokens)
        self._telemetry.request_seconds.observe(time.perf_counter() - self._arrived)

    def _deliver(self, index: int) -> Deliver:
        return partial(self._hand_over, index)

    def _hand_over(self, index: int, piece: Piece | None) -> None:
        """Called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

"""Many answers at once from a program that batches by itself and gives the tokens of each as they come.

In: `Generation`s. Out: their pieces. Every answer is a task of one event loop, which has a thread of its own; stops,
texts and scores are read here as everywhere, so an answer is the same whichever program chose its tokens.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing
from typing import Protocol

from llmforge.inference.server.answer import ScoredToken
from llmforge.inference.server.engine import EngineFullError, EngineLimits
from llmforge.inference.server.generation import Generation

Tokens = AsyncGenerator[tuple[int, ScoredToken | None], None]


class TokenSource(Protocol):
    """The program. All of it is called in one event loop."""

    async def open(self) -> None:
        """Load the model."""

    def tokens(self, generation: Generation) -> Tokens:
        """The tokens of one answer, those that end it included; closing it early drops the rest."""

    def close(self) -> None:
        """Free the device."""


class AsyncEngine:
    """Runs a `TokenSource`, from `start` to `stop`."""

    def __init__(self, source: TokenSource, limits: EngineLimits) -> None:
        self._source = source
        self._limits = limits
        self._lock = threading.Lock()
        self._unfinished: set[Generation] = set()
        self._begun: set[Generation] = set()
        """Those that have a token."""
        self._tasks: dict[Generation, asyncio.Task[None]] = {}
        self._is_open: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop
        """Runs from the moment that the engine is open until it is over."""
        self._over: asyncio.Future[None]
        """What ends it."""
        self._is_over = False
        self._executor = ThreadPoolExecutor(1, "llmforge-engine")

    def start(self) -> "Future[None]":
        """Begin, and wait until the model is loaded. Raises what keeps it from that."""
        ended = self._executor.submit(lambda: asyncio.run(self._run()))
        wait([ended, self._is_open], return_when=FIRST_COMPLETED)
        if ended.done():
            ended.result()
        return ended

    def stop(self) -> None:
        """End at once; unfinished answers get None."""
        with self._lock:
            if not self._is_over:
                self._loop.call_soon_threadsafe(self._finish, None)
        self._executor.shutdown()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Take answers that belong together into the queue. Raises `EngineFullError` where not all of them may wait."""
        with self._lock:
            if len(self._unfinished) + len(generations) > self._limits.max_unfinished:
                raise EngineFullError
            if not self._is_over:
                self._unfinished.update(generations)
                self._loop.call_soon_threadsafe(self._begin, list(generations))
                return
        for generation in generations:
            generation.deliver(None)

    def cancel(self, generation: Generation) -> None:
        """Drop an answer that nobody waits for, before its next token."""
        with self._lock:
            if generation in self._unfinished and not self._is_over:
                self._loop.call_soon_threadsafe(self._drop, generation)

    @property
    def num_running(self) -> int:
        """Answers that have a token."""
        return len(self._begun)

    @property
    def num_waiting(self) -> int:
        """Answers without one."""
        return len(self._unfinished) - len(self._begun)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        try:
            await self._source.open()
            self._is_open.set_result(None)
            await self._over
        finally:
            with self._lock:
                self._is_over = True
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for generation in self._unfinished:
                generation.deliver(None)
            self._unfinished.clear()
            self._begun.clear()
            self._source.close()

    def _begin(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            task = asyncio.ensure_future(self._answer(generation))
            task.add_done_callback(self._check)
            self._tasks[generation] = task

    async def _answer(self, generation: Generation) -> None:
        async with aclosing(self._source.tokens(generation)) as tokens:
            async for token, score in tokens:
                self._begun.add(generation)
                if generation.take(token, score):
                    self._forget(generation)
                    return
        raise RuntimeError("the engine ended an answer that has neither come to a stop nor to its longest length")

    def _check(self, task: "asyncio.Task[None]") -> None:
        """One answer that fails ends the engine: what made it fail is no business of its request."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._finish(error)

    def _drop(self, generation: Generation) -> None:
        task = self._tasks.get(generation)
        if task is not None:
            task.cancel()
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        self._begun.discard(generation)
        self._unfinished.discard(generation)
        self._tasks.pop(generation, None)

    def _finish(self, error: BaseException | None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

"""An engine over a program that batches by itself: here a small one that counts, with tokens when the test says so."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from llmforge.answers.sampling import Sampling
from llmforge.answers.stops import Stops
from llmforge.inference.server.answer import AnswerRules, Piece
from llmforge.inference.server.async_engine import AsyncEngine, Tokens
from llmforge.inference.server.engine import EngineFullError, EngineLimits
from llmforge.inference.server.generation import Generation

SECONDS = 20
STOP = 99


class Counter:
    """Answers `[n, length]` with n + 1, n + 2, ... up to `length` tokens, one each time that it is let go on."""

    def __init__(self) -> None:
        self.steps = asyncio.Semaphore(0)
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.dropped: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.is_closed = False

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def tokens(self, generation: Generation) -> Tokens:
        first, length = generation.prompt
        self.begun.put(first)
        try:
            for token in range(first + 1, first + 1 + length):
                await self.steps.acquire()
                if first < 0:
                    raise ValueError("no such number")
                yield token, None
            while length:
                await self.steps.acquire()
        finally:
            self.dropped.put(first)

    def close(self) -> None:
        self.is_closed = True

    def go_on(self, num_tokens: int) -> None:
        for _ in range(num_tokens):
            self.loop.call_soon_threadsafe(self.steps.release)


class Asked:
    """A generation whose pieces are collected."""

    def __init__(self, first: int, length: int, max_tokens: int = 50) -> None:
        self.pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        stops = Stops(frozenset({STOP}), (), ())
        rules = AnswerRules(stops, lambda ids: "".join(f"{token} " for token in ids), (0,), "", max_tokens)
        self.generation = Generation([first, length], rules, self.pieces.put, Sampling(temperature=0))

    def text(self, num_pieces: int) -> str:
        found = [self.pieces.get(timeout=SECONDS) for _ in range(num_pieces)]
        return "".join("None " if piece is None else piece.text for piece in found)


@contextmanager
def running(limits: EngineLimits | None = None) -> Iterator[tuple[AsyncEngine, Counter, Future[None]]]:
    source = Counter()
    engine = AsyncEngine(source, limits or EngineLimits())
    ended = engine.start()
    try:
        yield engine, source, ended
    finally:
        engine.stop()
        assert source.is_closed
        assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_answers_end_at_a_stop_or_at_their_longest_and_the_program_is_told() -> None:
    with running() as (engine, source, ended):
        stopped, long = Asked(STOP - 3, 9), Asked(10, 9, max_tokens=2)
        engine.submit([stopped.generation])
        engine.submit([long.generation])
        assert [source.begun.get(timeout=SECONDS) for _ in range(2)] == [STOP - 3, 10]
        assert (engine.num_running, engine.num_waiting) == (0, 2)
        source.go_on(5)
        assert (stopped.text(3), long.text(2)) == ("97 98 ", "11 12 ")
        assert {source.dropped.get(timeout=SECONDS) for _ in range(2)} == {STOP - 3, 10}
        assert not ended.done()


def test_what_is_cancelled_is_dropped_at_once_and_makes_room() -> None:
    with running(EngineLimits(max_concurrency=1, max_waiting=1)) as (engine, source, _):
        first, second, third = Asked(1, 9), Asked(2, 9), Asked(3, 1, max_tokens=1)
        engine.submit([first.generation])
        source.go_on(1)
        assert first.text(1) == "2 "
        assert engine.num_running == 1
        with pytest.raises(EngineFullError):
            engine.submit([second.generation, third.generation])
        engine.submit([second.generation])
        assert [source.begun.get(timeout=SECONDS) for _ in range(2)] == [1, 2]
        with pytest.raises(EngineFullError):
            engine.submit([third.generation])
        engine.cancel(first.generation)
        engine.cancel(second.generation)
        assert {source.dropped.get(timeout=SECONDS) for _ in range(2)} == {1, 2}
        engine.submit([third.generation])
        source.go_on(1)
        assert third.text(1) == "4 "
        assert first.pieces.empty() and second.pieces.empty()


def test_stopping_ends_what_runs_and_what_comes_later() -> None:
    with running() as (engine, source, ended):
        asked, late = Asked(1, 9), Asked(2, 9)
        engine.submit([asked.generation])
        source.go_on(1)
        assert asked.text(1) == "2 "
        engine.stop()
        assert ended.result(timeout=SECONDS) is None
        engine.submit([late.generation])
        assert asked.text(1) == late.text(1) == "None "
        assert source.dropped.get(timeout=SECONDS) == 1


@pytest.mark.parametrize(
    ("prompt", "num_steps", "error"),
    [((-5, 1), 2, ValueError), ((5, 0), 0, RuntimeError)],
    ids=["it fails", "it ends too early"],
)
def test_an_answer_that_fails_tells_everyone(prompt: tuple[int, int], num_steps: int, error: type[Exception]) -> None:
    with running() as (engine, source, ended):
        asked, other = Asked(*prompt), Asked(1, 9)
        engine.submit([other.generation])
        assert source.begun.get(timeout=SECONDS) == 1
        engine.submit([asked.generation])
        source.go_on(num_steps)
        with pytest.raises(error):
            ended.result(timeout=SECONDS)
        assert asked.text(1) == "None "
        while other.pieces.get(timeout=SECONDS) is not None:
            pass


class Broken(Counter):
    """Cannot load its model."""

    async def open(self) -> None:
        raise OSError("no such model")


def test_a_model_that_cannot_be_loaded() -> None:
    source = Broken()
    engine = AsyncEngine(source, EngineLimits())
    with pytest.raises(OSError, match="no such model"):
        engine.start()
    engine.stop()
    assert source.is_closed

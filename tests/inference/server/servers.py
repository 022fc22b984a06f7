"""Servers in this process, and clients of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmforge.inference.find import find_trained_model
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.engine_choice import EngineName
from llmforge.inference.server.models import ModelOptions, load_models
from llmforge.inference.server.run import Server, ServerOptions
from llmforge.inference.server.served_model import AnswerLimits

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Once upon a time"}]
OPTIONS = ModelOptions(AnswerLimits(max_tokens=400), EngineLimits())


@dataclass(frozen=True)
class Served:
    """A server, and clients that end with it."""

    server: Server
    closing: ExitStack

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """Which asks once only, so that a refusal is seen."""
        url = f"http://127.0.0.1:{self.server.port}/v1"
        return self.closing.enter_context(openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=60))

    def http(self) -> httpx2.Client:
        """For what the real client does not send."""
        client = httpx2.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=60)
        self.closing.callback(client.close)
        return client

    def counted(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.http().get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def serving(
    runs: Sequence[Path],
    cache: Path,
    *,
    names: Sequence[str] = ("mine",),
    engine: EngineLimits | None = None,
    engine_name: EngineName = "auto",
    api_key: str | None = None,
) -> Iterator[Served]:
    """Serve runs on a free port."""
    sources = [find_trained_model(str(run), "best", cache) for run in runs]
    options = ServerOptions(port=0, api_key=api_key, max_body_bytes=100_000)
    server = Server(
        load_models(sources, names, replace(OPTIONS, engine=engine or OPTIONS.engine, engine_name=engine_name)), options
    )
    try:
        with ExitStack() as closing:
            yield Served(server, closing)
    finally:
        server.drain(60, threading.Event())
        server.close()


def completed(client: openai.OpenAI, **asked: Any) -> ChatCompletion:
    """The whole reply to a story's begin."""
    asked = {"model": "mine", "messages": ASK, **asked}
    return cast(ChatCompletion, client.chat.completions.create(**asked))


def streamed(client: openai.OpenAI, **asked: Any) -> openai.Stream[ChatCompletionChunk]:
    """The same in pieces."""
    asked = {"model": "mine", "messages": ASK, **asked, "stream": True}
    return cast("openai.Stream[ChatCompletionChunk]", client.chat.completions.create(**asked))


def text_of(chunks: Iterable[ChatCompletionChunk], index: int = 0) -> str:
    """One of the answers in a stream."""
    choices = (choice for chunk in chunks for choice in chunk.choices if choice.index == index)
    return "".join(choice.delta.content or "" for choice in choices)


def wait_until(is_so: Callable[[], object]) -> None:
    """Return when it is so."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)

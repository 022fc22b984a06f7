"""What a server asks of the program that makes its answers, whichever it is.

In: `Generation`s. Out: their pieces, each delivered as soon as it is sure. Requests wait in the order in which they
came, and join and leave between two tokens of the others.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from llmforge.inference.server.generation import Generation


class EngineFullError(Exception):
    """More answers are asked for than may wait."""


@dataclass(frozen=True)
class EngineLimits:
    """What may be held at once."""

    max_concurrency: int = 32
    """Answers that are decoded together."""
    max_waiting: int = 256
    """Answers that wait for a place."""
    max_cached_tokens: int = 32768
    """Tokens of all running answers with their prompts, each counted with the length that the longest may reach."""
    prefill_tokens: int = 512
    """Tokens of prompts that are read between two steps of the running answers."""

    @property
    def max_unfinished(self) -> int:
        """Answers that are decoded and that wait."""
        return self.max_concurrency + self.max_waiting


class Engine(Protocol):
    """Makes answers in a thread of its own. What is said of one generation may be said from any thread."""

    @property
    def num_running(self) -> int:
        """Answers that have a place."""

    @property
    def num_waiting(self) -> int:
        """Answers without a place."""

    def start(self) -> "Future[None]":
        """Begin; the future ends with the engine, and holds the exception where it has failed."""

    def stop(self) -> None:
        """End at once; unfinished answers get None."""

    def submit(self, generations: Sequence[Generation]) -> None:
        """Take answers that belong together into the queue. Raises `EngineFullError` where not all of them may wait."""

    def cancel(self, generation: Generation) -> None:
        """Drop an answer that nobody waits for, before its next token."""

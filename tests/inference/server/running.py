"""An engine that runs for as long as a test does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmforge.inference.server.transformers_engine import TransformersEngine


@contextmanager
def running(engine: TransformersEngine) -> Iterator[None]:
    """Stops it even where the test fails, since its thread would keep the process from ending."""
    ended = engine.start()
    try:
        yield
    finally:
        engine.stop()
    ended.result()

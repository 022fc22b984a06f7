"""SIGTERM and Ctrl-C: the first asks for an end in order, the second for one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class StopSignals:
    """What has been asked for so far."""

    stop: threading.Event = field(default_factory=threading.Event)
    hurry: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Return when a stop is asked for."""
        # Not one long wait: where another thread takes the signal, Python handles it when this one next wakes.
        while not self.stop.wait(POLL_SECONDS):
            pass


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Take the signals as long as the block lasts. To be called in the main thread."""
    signals = StopSignals()

    def on_signal(number: int, frame: FrameType | None) -> None:
        (signals.hurry if signals.stop.is_set() else signals.stop).set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

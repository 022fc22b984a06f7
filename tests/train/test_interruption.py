"""Ctrl-C and SIGTERM while the workers train."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from llmforge.errors import ClusterError
from llmforge.train.interruption import run_interruptibly

WAIT_SECONDS = 10.0


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_without_a_signal_the_work_is_done_and_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    done: list[str] = []
    assert run_interruptibly(lambda: done.append("work"), lambda: done.append("asked")) is None
    assert done == ["work"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise ClusterError("no node is left")

    with pytest.raises(ClusterError, match="no node is left"):
        run_interruptibly(fail, lambda: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: int) -> None:
    asked = threading.Event()

    def work() -> None:
        send(number)
        assert asked.wait(WAIT_SECONDS)

    assert run_interruptibly(work, asked.set) == number


def test_the_second_leaves_while_the_work_goes_on() -> None:
    asked, is_left = threading.Event(), threading.Event()

    def work() -> None:
        send(signal.SIGTERM)
        assert asked.wait(WAIT_SECONDS)
        send(signal.SIGINT)
        assert is_left.wait(WAIT_SECONDS)

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, asked.set)
    is_left.set()

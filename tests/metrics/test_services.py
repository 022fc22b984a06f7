"""The thread between a run and a logging service."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

import pytest

from llmforge.errors import LoggerError
from llmforge.metrics.services import Measured, ServiceThread, Status


class Notebook:
    """A service that writes down what it is told, unless it is out of order."""

    def __init__(self, *, forgets_lost_steps: bool = False, num_failures: int = 0) -> None:
        self.forgets_lost_steps = forgets_lost_steps
        self.lines: list[object] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self._num_failures = num_failures

    def begin(self, step: int) -> None:
        self.lines.append(("begin", step))

    def log(self, records: Sequence[Measured]) -> None:
        self.is_open.wait()
        if self._num_failures:
            self._num_failures -= 1
            raise LoggerError("notebook: no ink")
        self.lines += [(record.step, *record.values) for record in records]

    def link(self, links: Mapping[str, str]) -> None:
        self.lines.append(dict(links))

    def finish(self, status: Status) -> None:
        self.lines.append(status)


def record(step: int, *keys: str) -> Measured:
    return Measured(step, 0.0, dict.fromkeys(keys or ("loss",), 0.5))


def thread_of(service: Notebook, sent: Mapping[str, int] | None = None, most_waiting: int = 100) -> ServiceThread:
    return ServiceThread(
        "notebook",
        service,
        sent or {},
        most_waiting=most_waiting,
        retry_seconds=0.01,
    )


def test_a_service_hears_everything_in_order() -> None:
    notebook = Notebook()
    thread = thread_of(notebook)
    thread.begin(0, [])
    thread.log(record(1))
    thread.log(record(1, "eval/loss"))
    thread.link({"run": "r"})
    thread.log(record(2))
    thread.finish("finished")
    assert notebook.lines == [("begin", 0), (1, "loss"), (1, "eval/loss"), {"run": "r"}, (2, "loss"), "finished"]
    assert thread.sent == {"loss": 2, "eval/loss": 1}


def test_steps_that_are_taken_again_are_not_sent_again_and_gaps_are_filled() -> None:
    """The service has the losses up to step 4, and lacks the evaluation of step 2 that the run has kept."""
    notebook = Notebook()
    thread = thread_of(notebook, {"loss": 4, "eval/loss": 1})
    thread.begin(2, [record(1), record(2), record(2, "eval/loss")])
    for step in (3, 4, 5):
        thread.log(record(step))
    thread.log(record(5, "loss", "eval/loss"))
    thread.finish("finished")
    assert notebook.lines == [("begin", 2), (2, "eval/loss"), (5, "loss"), (5, "eval/loss"), "finished"]


def test_a_service_that_forgets_lost_steps_gets_them_again() -> None:
    notebook = Notebook(forgets_lost_steps=True)
    thread = thread_of(notebook, {"loss": 4})
    thread.begin(2, [record(1), record(2)])
    thread.log(record(3))
    thread.finish("stopped")
    assert notebook.lines == [("begin", 2), (3, "loss"), "stopped"]
    assert thread.sent == {"loss": 3}


def test_what_a_service_refuses_is_sent_again_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    notebook = Notebook(num_failures=3)
    thread = thread_of(notebook)
    with caplog.at_level(logging.WARNING, logger="llmforge"):
        thread.log(record(1))
        thread.log(record(2))
        thread.finish("finished")
    assert notebook.lines == [(1, "loss"), (2, "loss"), "finished"]
    assert caplog.messages == ["notebook: no ink; training goes on, and the records are sent again later"]


def test_a_slow_service_holds_nobody_back_and_what_is_lost_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    notebook = Notebook()
    notebook.is_open.clear()
    thread = thread_of(notebook, most_waiting=3)
    with caplog.at_level(logging.WARNING, logger="llmforge"):
        for step in range(1, 9):
            thread.log(record(step))
        thread.finish("failed", 0.05)
    assert notebook.lines == []
    assert caplog.messages == [
        "notebook: 8 records did not get there; metrics.jsonl in the folder of the run has them all"
    ]
    notebook.is_open.set()


def test_what_was_given_up_is_not_tried_again() -> None:
    """The run may be started anew meanwhile, and would find its records twice."""
    thread = thread_of(Notebook(num_failures=10**9))
    thread.log(record(1))
    *_, tries = (one for one in threading.enumerate() if one.name == "llmforge-notebook")
    thread.finish("failed", 0.05)
    tries.join(10)
    assert not tries.is_alive()

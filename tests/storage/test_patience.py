"""What is tried again, and for how long."""

from __future__ import annotations

import time

import pytest

from llmforge.errors import StorageError
from llmforge.storage.patience import patiently
from llmforge.storage.types import NotFoundError, PassingError


class Server:
    """Answers after `num_failures` errors."""

    def __init__(self, num_failures: int, error: StorageError) -> None:
        self.num_failures = num_failures
        self.error = error
        self.num_requests = 0

    def answer(self) -> str:
        self.num_requests += 1
        if self.num_requests <= self.num_failures:
            raise self.error
        return "answer"


def test_a_disturbance_is_waited_for() -> None:
    server = Server(2, PassingError("reset"))
    assert patiently(server.answer, patience_seconds=0.2) == "answer"
    assert server.num_requests == 3


def test_not_for_ever() -> None:
    server = Server(1000, PassingError("reset"))
    began_at = time.monotonic()
    with pytest.raises(PassingError, match="reset"):
        patiently(server.answer, patience_seconds=0.1)
    assert server.num_requests == 3  # at once, after 25 and after 75 milliseconds
    assert time.monotonic() - began_at >= 0.07


@pytest.mark.parametrize("error", [StorageError("403"), NotFoundError("404")], ids=["refused", "missing"])
def test_a_refusal_is_final(error: StorageError) -> None:
    server = Server(1, error)
    with pytest.raises(type(error)):
        patiently(server.answer)
    assert server.num_requests == 1

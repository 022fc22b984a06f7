"""The table that says where the time of a start went."""

import pytest

from llmforge.metrics.phase_timer import PhaseTimer


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


def test_report() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    timer.add("imports of worker 0", 4.5)
    with timer.phase("start Ray"):
        clock.seconds += 1.0
        with timer.phase("load the job"):
            clock.seconds += 1.5
    clock.seconds += 7.5
    assert timer.report().splitlines() == [
        "phase                 start s    took s   share",
        "start Ray                0.00      2.50     25%",
        "load the job             1.00      1.50     15%",
        "imports of worker 0                4.50     45%",
        "total                             10.00",
    ]


def test_a_phase_that_fails_is_timed_as_well() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    with pytest.raises(ValueError), timer.phase("start Ray"):
        clock.seconds += 2.0
        raise ValueError
    assert "start Ray      0.00      2.00    100%" in timer.report()


def test_report_of_no_phases() -> None:
    clock = Clock()
    assert PhaseTimer(clock).report().splitlines()[-1] == "total                0.00"

"""When a run counts as stalled, whose fault it is, and what can be learnt of a process that is stuck."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llmforge.train.channel import Beat
from llmforge.train.supervisor import Stall, StallWatch, kill, stacks_of

TIMEOUT_SECONDS = 60.0
STUCK = """
import faulthandler, signal, sys, time
def waits_for_ever():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
with open(sys.argv[1], "w") as file:
    faulthandler.register(signal.SIGUSR1, file=file)
    waits_for_ever()
"""


def beat(
    rank: int, progress: int, *, group: int = 1, is_watched: bool = True, phase: str = "evaluating", number: int = 0
) -> Beat:
    return Beat(
        group=group,
        rank=rank,
        num_workers=2,
        phase=phase,
        step=7,
        number=number,
        progress=progress,
        is_watched=is_watched,
        node_id="ab12",
        pid=1,
        process_started_at=0.0,
        stack_file="",
    )


def test_a_run_has_stalled_when_no_rank_has_moved_for_too_long() -> None:
    watch = StallWatch(TIMEOUT_SECONDS)
    behind = beat(1, 4, phase="reading a batch")
    assert watch.look([beat(0, 5), behind], now=1000) is None
    assert watch.look([beat(0, 5), behind], now=1060) is None
    stall = watch.look([behind, beat(0, 5)], now=1061)
    assert stall == Stall((beat(0, 5), behind), 61)
    assert stall.culprits == (behind,)
    assert stall.describe() == (
        "stalled: nothing has moved for 61 s: rank 1 in 'reading a batch' of step 7; the others wait"
    )


def test_any_rank_that_moves_keeps_the_run_alive() -> None:
    watch = StallWatch(TIMEOUT_SECONDS)
    for number in range(10):
        assert watch.look([beat(0, 3), beat(1, number)], now=50.0 * number) is None


def test_the_same_place_in_a_new_worker_group_is_another_one() -> None:
    watch = StallWatch(TIMEOUT_SECONDS)
    assert watch.look([beat(0, 3), beat(1, 3)], now=0) is None
    assert watch.look([beat(0, 3, group=2), beat(1, 3, group=2)], now=100) is None
    assert watch.look([beat(0, 3, group=2), beat(1, 3, group=2)], now=161) is not None


@pytest.mark.parametrize("num_ranks", [0, 1])
def test_a_group_that_is_not_complete_has_not_stalled(num_ranks: int) -> None:
    watch = StallWatch(TIMEOUT_SECONDS)
    beats = [beat(rank, 3) for rank in range(num_ranks)]
    assert watch.look(beats, now=0) is None
    assert watch.look(beats, now=1000) is None


def test_what_may_take_long_is_no_stall_as_long_as_the_rank_beats() -> None:
    watch = StallWatch(TIMEOUT_SECONDS)
    for number in range(10):
        assert watch.look([beat(0, 3), beat(1, 3, is_watched=False, number=number)], now=50.0 * number) is None
    last = beat(1, 3, is_watched=False, number=9)
    assert watch.look([beat(0, 3), last], now=510) is None
    stall = watch.look([beat(0, 3), last], now=511)
    assert stall is not None
    assert stall.beats[1] == last


def test_where_nobody_is_behind_all_are_named() -> None:
    stall = Stall((beat(0, 3), beat(1, 3)), 90)
    assert stall.describe() == (
        "stalled: nothing has moved for 90 s: rank 0 in 'evaluating' of step 7; rank 1 in 'evaluating' of step 7"
    )


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Callable[[], Beat]]:
    """A process that will never end by itself; the fixture gives its beat."""
    file = tmp_path / "stacks"
    with subprocess.Popen([sys.executable, "-c", STUCK, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def current() -> Beat:
            started_at = psutil.Process(process.pid).create_time()
            fields = beat(0, 1).__dict__ | {
                "pid": process.pid,
                "process_started_at": started_at,
                "stack_file": str(file),
            }
            return Beat(**fields)

        yield current
        process.kill()


def test_the_stacks_of_a_process_that_is_stuck(stuck: Callable[[], Beat]) -> None:
    assert "in waits_for_ever" in stacks_of(stuck())


def test_a_process_that_does_not_answer(stuck: Callable[[], Beat], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmforge.train.supervisor.STACKS_SECONDS", 0.3)
    place = stuck()
    process = psutil.Process(place.pid)
    process.send_signal(signal.SIGSTOP)
    assert stacks_of(place) == "the process does not answer (its state: stopped)"
    kill(place)
    assert process.wait(10) == -signal.SIGKILL
    assert stacks_of(place) == "the process is gone"


def test_a_process_that_has_got_the_pid_of_another_is_left_alone(stuck: Callable[[], Beat]) -> None:
    place = stuck()
    fields = place.__dict__ | {"process_started_at": place.process_started_at - 100}
    kill(Beat(**fields))
    assert psutil.Process(place.pid).is_running()
    assert stacks_of(Beat(**fields)) == "the process is gone"

"""A run's display written as lines in one place and drawn in another: what is seen is what a local run shows."""

import io
import json
from collections.abc import Callable

from rich.console import Console

from llmforge.metrics.progress import ProgressDisplay
from llmforge.metrics.progress_lines import LinePlayer, LineWriter, read_line
from tests.metrics.displays import Clock, begin, record

Use = Callable[[ProgressDisplay, Clock], None]


def a_run(display: ProgressDisplay, clock: Clock) -> None:
    begin(display, clock, max_steps=30)
    for step in range(1, 31):
        clock.seconds += 1.0
        display.update(record(step), step)
        if step % 15 == 0:
            display.update({"eval/loss": 2.0}, step)
            display.message(f"step {step}: saved checkpoint step-{step:08d}-a1b2")


def written(use: Use) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(clock=clock, view=LineWriter(stream, clock)) as display:
        use(display, clock)
    return stream.getvalue().splitlines()


def drawn_here(use: Use) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=stream, width=80), clock) as display:
        use(display, clock)
    return stream.getvalue().splitlines()


def drawn_there(lines: list[str]) -> list[str]:
    stream = io.StringIO()
    player = LinePlayer(Console(file=stream, width=80))
    for line in lines:
        player.play(line)
    player.close()
    return stream.getvalue().splitlines()


def test_what_is_drawn_there_is_what_is_drawn_here() -> None:
    there = drawn_there(written(a_run))
    lasting = [line for line in drawn_here(a_run) if not line.startswith(("step ", "preparing data: 3", "preparing"))]
    assert [line for line in there if line in lasting] == lasting
    assert "preparing data: 12,000 of 12,000 rows, 10 s" in there
    assert "step 15: saved checkpoint step-00000015-a1b2" in there
    assert there[-3].startswith("step 30 of 30, loss 0.1667, lr 1.00e-04, 12,346 trained tokens/s")
    assert there[-2:] == [
        "step 30: evaluation loss 2.0000, perplexity 7.39",
        "step 30: saved checkpoint step-00000030-a1b2",
    ]


def test_the_longer_a_run_the_fewer_its_lines() -> None:
    """A line every two seconds at first, every thirty after a day; the last step at once, and the end."""

    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.start_training(first_step=0, max_steps=200)
        for step in range(1, 201):
            clock.seconds += 86_400 if step == 101 else 1
            display.update(record(step), step)

    steps = [json.loads(line)["training"]["step"] for line in written(run)[2:]]
    assert steps == [*range(2, 101, 2), 101, 131, 161, 191, 200, 200]


def test_lines_of_others_and_of_other_versions() -> None:
    newer = '{"llmforge": "progress", "at": 1.0, "text": "hello", "colour": "green"}'
    foreign = ['{"a": 1}', "{torn", '{"llmforge": "progress"}', "Traceback (most recent call last):"]
    assert [read_line(line) for line in foreign] == [None] * 4
    assert drawn_there([newer, *foreign]) == ["hello", *foreign]


def test_control_characters_of_a_log_reach_no_terminal() -> None:
    assert drawn_there(["\x1b[2Jcleared"]) == ["[2Jcleared"]

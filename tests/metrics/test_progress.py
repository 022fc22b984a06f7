"""What the display writes, on a pipe and on a terminal."""

import io
import re
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from llmforge.metrics.progress import ProgressDisplay
from tests.metrics.displays import Clock, begin, record


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(use: Callable[[ProgressDisplay, Clock], None], stream: io.StringIO | None = None) -> str:
    """What a use of the display leaves in a stream that is no terminal, or in the given one."""
    stream = stream or io.StringIO()
    clock = Clock()
    # As with FORCE_COLOR: rich is told to take the stream for a terminal.
    console = Console(file=stream, force_terminal=True, force_interactive=True, width=80, color_system="truecolor")
    with ProgressDisplay(console, clock) as display:
        use(display, clock)
    return stream.getvalue()


def test_a_whole_run_on_a_pipe() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        begin(display, clock, max_steps=12)
        display.update({"eval/loss": 2.0}, 0)
        for step in range(1, 13):
            clock.seconds += 1.0
            display.update(record(step), step)
            if step % 6 == 0:
                display.phase("evaluating")
                display.update({"eval/loss": 1.0, "eval/perplexity": 2.71828}, step)
                display.phase("saving")
                display.message(f"saved step {step}")
                display.phase("training")

    assert shown(run).splitlines() == [
        "preparing data",
        "preparing data: 0 of 12,000 rows",
        "preparing data: 9,000 of 12,000 rows",
        "preparing data: 12,000 of 12,000 rows",
        "preparing data: 12,000 of 12,000 rows, 10 s",
        "starting workers",
        "starting workers: 8.0 s",
        "training",
        "step 0: evaluation loss 2.0000, perplexity 7.39",
        "step 1 of 12, loss 5.0000, lr 1.00e-04, 12,346 trained tokens/s",
        "step 6 of 12, loss 0.8333, lr 1.00e-04, 12,346 trained tokens/s, 6.0 s left",
        "step 6: evaluation loss 1.0000, perplexity 2.72",
        "saved step 6",
        "step 11 of 12, loss 0.4545, lr 1.00e-04, 12,346 trained tokens/s, 1.0 s left",
        "step 12 of 12, loss 0.4167, lr 1.00e-04, 12,346 trained tokens/s",
        "step 12: evaluation loss 1.0000, perplexity 2.72",
        "saved step 12",
    ]


def test_a_resumed_run_starts_where_it_was_and_foretells_from_its_own_steps() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.start_training(first_step=100, max_steps=110)
        clock.seconds += 60.0  # the first step compiles
        display.update({"train/loss": 1.0}, 101)
        clock.seconds += 6.0
        display.update({"train/loss": 1.0}, 103)

    assert shown(run).splitlines() == [
        "training",
        "step 101 of 110, loss 1.0000",
        "step 103 of 110, loss 1.0000, 21 s left",
    ]


def test_the_share_of_the_peak_where_it_is_known() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.start_training(first_step=0, max_steps=2)
        display.update({**record(1), "train/mfu": 0.4149}, 1)

    assert shown(run).splitlines()[-1] == "step 1 of 2, loss 5.0000, lr 1.00e-04, 12,346 trained tokens/s, MFU 41%"


def test_rows_of_unknown_total() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.phase("preparing data")
        display.data(1234)

    assert "preparing data: 1,234 rows" in shown(run).splitlines()


def test_text_of_a_message_is_neither_markup_nor_control() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.message("[INST] [bold]x[/] :smile: \x1b[31mred\x1b[0m \x07bell\rback " + "long " * 40)

    assert shown(run) == "[INST] [bold]x[/] :smile: [31mred[0m bellback " + "long " * 40 + "\n"


def test_a_failed_phase_is_not_reported_as_done() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.phase("starting workers")
        raise KeyError

    stream = io.StringIO()
    with pytest.raises(KeyError):
        shown(run, stream)
    assert stream.getvalue() == "starting workers\n"


def test_a_terminal_gets_a_bar_below_the_lasting_lines() -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.phase("preparing data")
        display.data(10, 20)
        display.start_training(0, 4)
        display.update(record(1), 1)
        display.message("saved [INST]")
        clock.seconds += 3
        display.update(record(2), 2)

    written = shown(run, Terminal())
    assert "\x1b[" in written
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written).replace("\r", "").splitlines()
    assert "preparing data: 10 of 20 rows, 0.0 s" in lines
    assert "saved [INST]" in lines
    assert re.fullmatch(r"training ━+.* step 2 of 4  6\.0 s left *", lines[-2])
    assert lines[-1].strip() == "loss 2.5000   lr 1.00e-04   12,346 trained tokens/s"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_callbacks_of_many_threads_lose_and_tear_no_line(stream: io.StringIO) -> None:
    def run(display: ProgressDisplay, clock: Clock) -> None:
        display.start_training(0, 1000)

        def callback(thread: int) -> None:
            for number in range(25):
                display.update(record(number + 1), number + 1)
                display.message(f"thread {thread} line {number}")

        threads = [threading.Thread(target=callback, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(run, stream)).replace("\r", "").splitlines()
    expected = {f"thread {thread} line {number}" for thread in range(8) for number in range(25)}
    assert sorted(line for line in lines if line in expected) == sorted(expected)

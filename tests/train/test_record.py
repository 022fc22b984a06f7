"""What is kept and shown of the events of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llmforge.metrics.loggers import METRICS_FILE
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.metrics.samples import SAMPLES_FILE, Sample
from llmforge.storage.base import NotFoundError, Storage, open_storage, read_bytes, write_bytes
from llmforge.train.channel import Event
from llmforge.train.record import RunRecord
from tests.storage.failing_storage import FailingStorage


class Run:
    """One start of a run: its record, and what a person sees of it."""

    def __init__(self, storage: Storage) -> None:
        self._stream = io.StringIO()
        self.timer = PhaseTimer()
        self.display = ProgressDisplay(Console(file=self._stream, width=200), clock=lambda: 0.0)
        self.record = RunRecord(storage, self.display, self.timer)

    def starts(self, step: int = 0, max_steps: int = 10, checkpoint: str = "") -> None:
        """Workers say that they begin with the step after `step`."""
        self.record.handle(Event("started", step=step, text=checkpoint, metrics={"max_steps": max_steps}))

    def steps(self, *steps: int) -> None:
        """One metric record for each step."""
        for step in steps:
            self.record.handle(Event("metrics", step=step, metrics={"train/loss": step / 8}))

    def answers(self, step: int, text: str) -> None:
        """One prompt was answered."""
        sample = Sample(step, 0, [{"role": "user", "content": "a?"}], text, "stop")
        self.record.handle(Event("samples", step=step, samples=[sample]))

    def saves(self, step: int) -> None:
        self.record.handle(Event("checkpoint", step=step, text=f"step-{step:08d}-ab12"))

    @property
    def shown(self) -> list[str]:
        return self._stream.getvalue().splitlines()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def keep_in_checkpoint(storage: Storage, *steps: int) -> str:
    """The records of these steps, in a checkpoint of the last of them; its name."""
    name = f"step-{steps[-1]:08d}-ab12"
    lines = "".join(f'{{"step": {step}, "train/loss": {step / 8}}}\n' for step in steps)
    write_bytes(storage, f"checkpoints/{name}/{METRICS_FILE}", lines.encode())
    return name


def stored_steps(storage: Storage) -> list[int]:
    return [json.loads(line)["step"] for line in read_bytes(storage, METRICS_FILE).splitlines()]


def recorded_steps(run: Run) -> list[float]:
    return [record["step"] for record in run.record.records]


def test_metrics_reach_the_storage_with_every_checkpoint_and_at_the_end(storage: Storage) -> None:
    run = Run(storage)
    run.starts()
    run.steps(1, 2)
    with pytest.raises(NotFoundError):
        read_bytes(storage, METRICS_FILE)
    run.saves(2)
    assert stored_steps(storage) == [1, 2]
    run.steps(3, 4)
    assert stored_steps(storage) == [1, 2]
    assert recorded_steps(run) == [1, 2, 3, 4]
    run.record.close()
    assert read_bytes(storage, METRICS_FILE).decode() == "".join(
        f'{{"step": {step}, "train/loss": {step / 8}}}\n' for step in (1, 2, 3, 4)
    )


def stored_answers(storage: Storage, folder: str = "") -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in read_bytes(storage, f"{folder}{SAMPLES_FILE}").splitlines()]
    return [(row["step"], row["answer"]) for row in rows]


def test_answers_reach_the_storage_as_metrics_do_and_have_no_gap_or_double_after_a_restart(storage: Storage) -> None:
    run = Run(storage)
    run.starts()
    run.steps(1, 2)
    run.answers(2, "a")
    saved = keep_in_checkpoint(storage, 1, 2)
    run.saves(2)
    stored = read_bytes(storage, SAMPLES_FILE)
    assert stored_answers(storage) == [(2, "a")]
    write_bytes(storage, f"checkpoints/{saved}/{SAMPLES_FILE}", stored)
    run.answers(4, "lost")
    run.starts(step=2, checkpoint=saved)
    run.answers(4, "b")
    run.record.close()
    assert stored_answers(storage) == [(2, "a"), (4, "b")]
    assert [(sample.step, sample.answer) for sample in run.record.samples] == [(2, "a"), (4, "b")]
    assert [line for line in run.shown if "prompt answered" in line] == [
        'step 2: 1 prompt answered; the first: "a"',
        'step 4: 1 prompt answered, 1 otherwise than before; the first: "lost"',
        'step 4: 1 prompt answered, 1 otherwise than before; the first: "b"',
    ]
    later = Run(storage)  # another driver, which knows only what the checkpoint holds
    later.starts(step=2, checkpoint=saved)
    later.answers(4, "b")
    later.record.close()
    assert stored_answers(storage) == [(2, "a"), (4, "b")]


def test_a_run_without_prompts_leaves_no_file_of_answers(storage: Storage) -> None:
    run = Run(storage)
    run.starts()
    run.record.close()
    assert [file.key for file in storage.list()] == [METRICS_FILE]


def test_records_can_be_read_after_the_end(storage: Storage) -> None:
    """The report is made of them then."""
    run = Run(storage)
    run.starts()
    run.steps(1, 2, 3)
    run.record.close()
    assert recorded_steps(run) == [1, 2, 3]


def test_restarted_workers_take_steps_again(storage: Storage) -> None:
    """They go on from a checkpoint: what was recorded after it belongs to a lost attempt."""
    run = Run(storage)
    run.starts()
    run.steps(1, 2)
    saved = keep_in_checkpoint(storage, 1, 2)
    run.saves(2)
    run.steps(3, 4)
    run.starts(step=2, checkpoint=saved)
    run.steps(3, 4, 5)
    run.record.close()
    assert stored_steps(storage) == [1, 2, 3, 4, 5]
    assert f"resuming {storage.root_uri} from step 2 (step-00000002-ab12)" in run.shown


def test_a_resumed_run_continues_the_records_of_its_checkpoint(storage: Storage) -> None:
    """Also where the driver before died without having stored those of the last steps, or had stored more."""
    write_bytes(storage, METRICS_FILE, b'{"step": 1, "train/loss": 0.125}\n')
    run = Run(storage)
    run.starts(step=3, checkpoint=keep_in_checkpoint(storage, 1, 2, 3))
    run.steps(4)
    run.record.close()
    assert stored_steps(storage) == [1, 2, 3, 4]
    again = Run(storage)
    again.starts(step=3, checkpoint="step-00000003-ab12")
    again.record.close()
    assert stored_steps(storage) == [1, 2, 3]


def test_a_checkpoint_without_records_leaves_a_gap_and_a_word(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(storage)
    run.starts(step=2, checkpoint="step-00000002-ab12")
    run.steps(3)
    run.record.close()
    assert stored_steps(storage) == [3]
    assert "the curves and answers up to step 2 may have gaps" in caplog.text


def test_a_run_that_starts_anew_in_the_same_folder(storage: Storage) -> None:
    """The last one ended before its first checkpoint."""
    first = Run(storage)
    first.starts()
    first.steps(1, 2)
    first.record.close()
    again = Run(storage)
    again.starts(step=0)
    again.steps(1)
    again.record.close()
    assert stored_steps(storage) == [1]


def test_a_run_that_fails_before_it_starts_training_leaves_an_empty_file(storage: Storage) -> None:
    run = Run(storage)
    run.record.handle(Event("phase", text="loading the model"))
    run.record.close()
    assert stored_steps(storage) == []
    assert list(run.record.records) == []


def test_a_storage_that_fails_ends_no_run_and_leaves_nothing_on_this_machine(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run = Run(FailingStorage(storage, fail_at=1))
    run.starts()
    run.steps(1)
    assert len(list(scratch.iterdir())) == 1
    run.record.close()
    assert "metrics.jsonl was not stored" in caplog.text
    assert list(scratch.iterdir()) == []
    assert recorded_steps(run) == [1]


def test_what_a_person_sees(storage: Storage) -> None:
    run = Run(storage)
    run.record.handle(Event("phase", text="loading the model"))
    run.starts(step=2, max_steps=4)
    run.record.handle(Event("metrics", step=2, metrics={"eval/loss": 1.0}))
    run.steps(3, 4)
    run.saves(4)
    run.record.close()
    assert run.shown == [
        "loading the model",
        "loading the model: 0.0 s",
        "training",
        "step 2: evaluation loss 1.0000, perplexity 2.72",
        "step 3 of 4, loss 0.3750",
        "step 4 of 4, loss 0.5000",
        "step 4: saved checkpoint step-00000004-ab12",
    ]


def test_times_measured_by_workers(storage: Storage) -> None:
    run = Run(storage)
    run.record.handle(Event("timing", text="worker: imports", metrics={"seconds": 4.25}))
    run.record.close()
    assert run.timer.report().splitlines()[1].split()[:3] == ["worker:", "imports", "4.25"]


def test_workers_that_left_for_others_have_not_stopped_the_run(storage: Storage) -> None:
    run = Run(storage)
    run.starts()
    run.record.handle(Event("stopped", step=4))
    assert run.record.is_stopped
    run.starts()
    assert not run.record.is_stopped
    run.record.close()


def test_a_wait_is_shown_and_lasts_until_the_next_word(storage: Storage) -> None:
    run = Run(storage)
    run.record.handle(Event("waiting", text="waiting for 2 x {CPU: 1}: 1 free"))
    assert run.record.is_waiting
    assert run.shown == ["waiting for 2 x {CPU: 1}: 1 free"]
    run.record.handle(Event("phase", text="loading the model"))
    assert not run.record.is_waiting
    run.record.close()

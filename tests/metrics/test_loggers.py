"""The metrics file: what stands in it, what survives a kill, and what a resume removes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.metrics.loggers import JsonlLogger, MultiLogger, read_metrics


class Remembering:
    """A logger that keeps what it was given."""

    def __init__(self, fails_to_close: bool = False) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False
        self._fails_to_close = fails_to_close

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.records.append((step, dict(metrics)))

    def close(self) -> None:
        self.is_closed = True
        if self._fails_to_close:
            raise OSError("no space left")


def write(path: Path, steps: range, **options: bool | int | None) -> None:
    append, resume = options.get("append", True), options.get("resume_from_step")
    log = JsonlLogger(path, append=bool(append), resume_from_step=resume)
    for step in steps:
        log.log({"train/loss": step / 10}, step)
    log.close()


def steps_in(path: Path) -> list[float]:
    return [record["step"] for record in read_metrics(path)]


def test_one_flat_object_per_line_step_first(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = JsonlLogger(path)
    log.log({"epoch": 0.5, "train/loss": 1.25, "train/peak_memory_bytes": 2**40}, 3)
    log.log({"eval/loss": 2.0}, 3)
    assert path.read_text() == (
        '{"step": 3, "epoch": 0.5, "train/loss": 1.25, "train/peak_memory_bytes": 1099511627776}\n'
        '{"step": 3, "eval/loss": 2.0}\n'
    ), "every line is in the file before the logger is closed"
    log.close()
    log.close()


def test_numbers_that_are_not_finite_are_null_in_strict_json_and_come_back_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonlLogger(path)
    log.log({"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": -math.inf}, 1)
    log.close()
    assert json.loads(path.read_text()) == {"step": 1, "train/loss": None, "train/grad_norm": None, "train/lr": None}
    (record,) = read_metrics(path)
    assert record.pop("step") == 1
    assert set(record) == {"train/loss", "train/grad_norm", "train/lr"}
    assert all(map(math.isnan, record.values()))


def test_appending_goes_on_and_starting_anew_forgets(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    write(path, range(3, 5))
    assert steps_in(path) == [1, 2, 3, 4]
    write(path, range(1, 2), append=False)
    assert steps_in(path) == [1]


def test_resume_removes_the_steps_of_the_lost_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    before = path.read_text().splitlines()
    write(path, range(6, 9), resume_from_step=5)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert path.read_text().splitlines()[:5] == before[:5], "what is kept is kept as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_resume_before_the_first_step_leaves_only_the_evaluation_of_the_base_model(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(0, 4))
    write(path, range(0), resume_from_step=0)
    assert steps_in(path) == [0]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(6, 8), resume_from_step=5)
    assert steps_in(path) == [6, 7]


def test_a_line_torn_at_any_byte_is_passed_over_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    whole = path.read_bytes()
    start_of_last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(start_of_last, len(whole)):
        path.write_bytes(whole[:size])
        # Without its newline, but with its closing brace, the last record is whole.
        kept = [1, 2, 3] if size == len(whole) - 1 else [1, 2]
        assert steps_in(path) == kept
        write(path, range(9, 10))
        assert steps_in(path) == [*kept, 9]


@pytest.mark.parametrize("tail", [b"\x00" * 40, b'{"step": 4, "tr\xff\n', b"[1, 2]\n", b"\n\n", b"7"])
def test_a_damaged_tail_is_no_record(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    path.write_bytes(path.read_bytes() + tail)
    assert steps_in(path) == [1, 2]


@pytest.mark.parametrize(
    "line", ["half a li", "[]", '{"train/loss": 1}', '{"step": "2"}', '{"step": 2, "train/loss": "low"}', ""]
)
def test_a_broken_line_before_the_last_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    for read in (read_metrics, JsonlLogger):
        with pytest.raises(StorageError) as caught:
            read(path)
        assert str(caught.value).startswith(
            f"{path}:2: expected a JSON object with a `step` and numbers, found {line!r}"
        )
        assert "Delete that line" in str(caught.value)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    assert read_metrics(path) == []


def test_several_loggers_get_every_record() -> None:
    first, second = Remembering(), Remembering()
    both = MultiLogger([first, second])
    both.log({"train/loss": 1.0}, 1)
    both.close()
    assert first.records == second.records == [(1, {"train/loss": 1.0})]
    assert first.is_closed and second.is_closed


def test_all_loggers_are_closed_when_one_fails() -> None:
    loggers = [Remembering(), Remembering(fails_to_close=True), Remembering()]
    with pytest.raises(OSError, match="no space left"):
        MultiLogger(loggers).close()
    assert all(one.is_closed for one in loggers)

"""Answers in a file or in parts: what a run leaves that was cut short, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.errors import ConfigError, StorageError
from llmforge.inference.answer_output import AnswerRecord, open_answer_output

RECORD = AnswerRecord(
    checkpoint="step-00000010-a",
    checkpoint_digest="d",
    input_sha256="i",
    num_rows=5,
    sampling={"temperature": 0.0, "seed": None},
)
LINES = [json.dumps({"row": row, "text": "é\u2028"}, ensure_ascii=False) for row in range(5)]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers/", "deep/er/answers.jsonl"])
def test_an_output_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    uri = f"{tmp_path}/{name}"
    output = open_answer_output(uri, RECORD)
    assert output.num_done == 0
    output.write(LINES[:2])
    assert output.num_done == 2
    again = open_answer_output(uri, RECORD)
    assert again.num_done == 2
    again.write(LINES[2:3])
    again.write(LINES[3:])
    assert open_answer_output(uri, RECORD).num_done == 5
    files = sorted((tmp_path / "answers").glob("*.jsonl")) if name == "answers/" else [tmp_path / name]
    assert "".join(file.read_text(encoding="utf-8") for file in files) == "".join(f"{line}\n" for line in LINES)
    if name == "answers/":
        assert [file.name for file in files] == [
            "part-000000000-000000002.jsonl",
            "part-000000002-000000003.jsonl",
            "part-000000003-000000005.jsonl",
        ]


@pytest.mark.parametrize("torn", [b'{"row": 3, "te', b"\0\0\0\0", b"\0\0\0\n", "é".encode()[:1]])
def test_a_torn_end_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    open_answer_output(str(path), RECORD).write(LINES[:3])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    output = open_answer_output(str(path), RECORD)
    assert output.num_done == 3
    assert path.read_bytes() == whole


def test_every_byte_at_which_a_run_may_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    open_answer_output(str(path), RECORD).write(LINES[:2])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        output = open_answer_output(str(path), RECORD)
        assert output.num_done == whole[:size].count(b"\n")
        output.write(LINES[output.num_done : 2])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"checkpoint": "step-00000020-b"}, "begun with the checkpoint step-00000010-a and not step-00000020-b"),
        ({"input_sha256": "j"}, "begun with another input file"),
        ({"num_rows": 4}, "begun with other rows of the input"),
        ({"sampling": {"temperature": 0.5, "seed": None}}, "begun with temperature 0.0 and not 0.5"),
    ],
)
@pytest.mark.parametrize("name", ["answers.jsonl", "answers/"])
def test_answers_to_other_questions_are_refused(
    tmp_path: Path, name: str, change: dict[str, object], found: str
) -> None:
    uri = f"{tmp_path}/{name}"
    open_answer_output(uri, RECORD).write(LINES[:2])
    other = AnswerRecord.model_validate(RECORD.model_dump() | change)
    with pytest.raises(ConfigError) as caught:
        open_answer_output(uri, other)
    assert str(caught.value) == (
        f"--output: {uri} holds answers already, {found}; answers to different questions never stand in one place: "
        "name another place, or remove what is there"
    )
    assert open_answer_output(uri, RECORD).num_done == 2


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("my text")
    with pytest.raises(ConfigError, match="with no record of what was asked"):
        open_answer_output(str(path), RECORD)
    assert path.read_text() == "my text"
    path.write_text("")
    assert open_answer_output(str(path), RECORD).num_done == 0


def test_a_record_without_answers_binds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    open_answer_output(str(path), RECORD)
    other = RECORD.model_copy(update={"input_sha256": "j"})
    open_answer_output(str(path), other).write(LINES)
    with pytest.raises(ConfigError, match="another input file"):
        open_answer_output(str(path), RECORD)


def test_a_part_that_is_gone(tmp_path: Path) -> None:
    uri = f"{tmp_path}/answers/"
    output = open_answer_output(uri, RECORD)
    output.write(LINES[:2])
    output.write(LINES[2:])
    (tmp_path / "answers" / "part-000000000-000000002.jsonl").unlink()
    with pytest.raises(ConfigError, match="has no part that begins with row 0, but parts behind it"):
        open_answer_output(uri, RECORD)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        open_answer_output(f"{tmp_path}/file/answers.jsonl", RECORD)

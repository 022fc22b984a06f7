"""The sources of a job: their files, and how their rows are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig
from llmforge.dataset.job_sources import LOADED_FOLDER, list_sources, training_sources, with_format
from llmforge.errors import DataError

MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
COLUMNS = {"instruction": "hi", "input": "", "output": "ho"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, row in (("a.jsonl", MESSAGES), ("b.jsonl", COLUMNS), ("c.jsonl", {"text": "Once."})):
        (tmp_path / name).write_text(json.dumps(row))
    return tmp_path


def make_job(**keys: object) -> JobConfig:
    return JobConfig.model_validate({"model_id": "m", "task": "instruction_tuning", **keys})


def test_files_and_settings_of_each_source(folder: Path) -> None:
    own = {"path": "[bc].jsonl", "weight": 2, "format": "instruction", "columns": {"output": "reply"}}
    job = make_job(
        train_path=["a.jsonl", own], valid_path="a.jsonl", dataset={"format": "sharegpt", "deduplicate": True}
    )
    first, second, third = list_sources(job)
    assert [source.uris for source in (first, second, third)] == [("a.jsonl",), ("b.jsonl", "c.jsonl"), ("a.jsonl",)]
    assert [source.is_validation for source in (first, second, third)] == [False, False, True]
    assert [source.weight for source in (first, second, third)] == [None, 2, None]
    assert [source.row_format for source in (first, second, third)] == ["sharegpt", "instruction", "sharegpt"]
    assert second.dataset.columns is not None
    assert (second.dataset.columns.output, second.dataset.deduplicate) == ("reply", True)


def test_training_sources_leave_validation_data_alone(folder: Path) -> None:
    job = make_job(train_path="a.jsonl", valid_path="none/*.jsonl")
    assert [source.path for source in training_sources(job)] == ["a.jsonl"]
    with pytest.raises(DataError, match=r"none/\*\.jsonl: no file matches"):
        list_sources(job)


def test_the_format_of_a_source_is_looked_up_in_its_rows(folder: Path) -> None:
    sources = list_sources(make_job(train_path=["a.jsonl", "b.jsonl", {"path": "b.jsonl", "format": "instruction"}]))
    first, second, third = (with_format(source, "instruction_tuning", folder / "cache") for source in sources)
    assert (first.row_format, first.evidence) == (
        "messages",
        "`messages` is a list of {role, content} in 1 of the first 1 rows",
    )
    assert (second.row_format, third.row_format, third.evidence) == ("instruction", "instruction", None)


def test_text_is_for_one_task(folder: Path) -> None:
    (source,) = list_sources(make_job(train_path="c.jsonl"))
    assert with_format(source, "causal_lm", folder / "cache").row_format == "text"
    with pytest.raises(DataError, match=r"c\.jsonl: rows of plain text, but task is instruction_tuning"):
        with_format(source, "instruction_tuning", folder / "cache")


def test_what_has_no_format(folder: Path) -> None:
    (folder / "d.jsonl").write_text('{"label": 3}')
    (folder / "e.jsonl").write_text("\n \n")
    sources = list_sources(make_job(train_path=["d.jsonl", "e.jsonl"]))
    with pytest.raises(DataError, match=r"^d\.jsonl: the first 1 rows have no format that is known \(found: label\)"):
        with_format(sources[0], "instruction_tuning", folder / "cache")
    with pytest.raises(DataError, match=r"^e\.jsonl: no rows; expected records, such as one JSON object per line$"):
        with_format(sources[1], "instruction_tuning", folder / "cache")


@pytest.mark.slow
def test_a_hugging_face_dataset_is_put_where_all_nodes_can_read_it(folder: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the datasets library")
    splits = {name: datasets.Dataset.from_list([COLUMNS] * count) for name, count in (("train", 3), ("validation", 1))}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    train, valid = list_sources(make_job(train_path="saved", valid_path="saved", output_dir=str(folder / "runs")))
    assert [Path(source.uris[0]).parent for source in (train, valid)] == [folder / "runs" / LOADED_FOLDER] * 2
    assert train.uris != valid.uris
    assert with_format(train, "instruction_tuning", folder / "cache").row_format == "instruction"
    with pytest.raises(DataError, match=r"^saved: training and validation would have the same rows; give a split to"):
        list_sources(make_job(train_path="saved", valid_path="saved", dataset={"load_kwargs": {"split": "train"}}))

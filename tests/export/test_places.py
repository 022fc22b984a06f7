"""An export stands at its address as a whole, or not at all."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from llmforge.checkpoint.exported import EXPORT_RECORD, ExportRecord, read_export_record
from llmforge.checkpoint.records import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.errors import ConfigError
from llmforge.export.places import ExportPlace
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import folder_records
from tests.export.trained_runs import make_job

INFO = CheckpointInfo("step-00000001-a", 1, 1, datetime(2026, 1, 2, tzinfo=timezone.utc), {}, ())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return make_job(Path("owner/model"), tmp_path_factory.mktemp("job"))


def put(place: ExportPlace, job: JobConfig, scratch: Path, text: str) -> ExportRecord:
    with place.staging(scratch) as folder:
        (folder / "config.json").write_text(text)
        record = ExportRecord.of(job, INFO, folder_records(folder))
        (folder / "README.md").write_text("# a card")
        others = [one for one in folder_records(folder) if one not in record.files]
        place.commit(folder, record, others)
    return record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder(tmp_path: Path, job: JobConfig) -> None:
    target = tmp_path / "new" / "out"
    record = put(ExportPlace.of(str(target), replace=False), job, tmp_path, "{}")
    assert names(target) == ["README.md", "config.json", EXPORT_RECORD]
    assert read_export_record(open_storage(str(target))) == record
    assert names(target.parent) == ["out"]


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path, job: JobConfig) -> None:
    (tmp_path / "out").mkdir()
    put(ExportPlace.of(str(tmp_path / "out"), replace=False), job, tmp_path, "{}")
    assert EXPORT_RECORD in names(tmp_path / "out")


def test_what_stands_there_stays_unless_it_may_be_replaced(tmp_path: Path, job: JobConfig) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError) as caught:
        ExportPlace.of(str(target), replace=False)
    assert str(caught.value) == (
        f"{target}: found 1 files such as mine.txt, allowed is an empty or a new folder: name another one, or replace "
        "what stands there with --force"
    )
    put(ExportPlace.of(str(target), replace=True), job, tmp_path, "{}")
    assert names(target) == ["README.md", "config.json", EXPORT_RECORD]
    assert names(tmp_path) == ["out"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="found a file, allowed is a folder"):
        ExportPlace.of(str(tmp_path / "out"), replace=True)


def test_what_came_meanwhile_is_not_overwritten(tmp_path: Path, job: JobConfig) -> None:
    target = tmp_path / "out"
    place = ExportPlace.of(str(target), replace=False)
    target.mkdir()
    (target / "other.txt").write_text("")
    with pytest.raises(ConfigError, match=r"found 1 files such as other\.txt"):
        put(place, job, tmp_path, "{}")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["other.txt"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    place = ExportPlace.of(str(tmp_path / "out"), replace=False)
    with pytest.raises(RuntimeError), place.staging(tmp_path) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert names(tmp_path) == []

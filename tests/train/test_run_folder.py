"""Whether a job may go on in the folder of a run."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from pydantic import JsonValue

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.errors import CheckpointError, ConfigError
from llmforge.storage.base import open_storage, write_bytes
from llmforge.train.run_folder import check_continuity, check_run_folder
from tests.ray_fixtures import MakeJob

NAME = "step-00000020-3fa29c01"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_storage(str(tmp_path / "run")))


def save(store: CheckpointStore, folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "file").write_text("bytes")
    store.upload_rank(NAME, folder / "weights", 0, 1)
    store.commit(NAME)


def test_a_new_run(store: CheckpointStore) -> None:
    check_run_folder(store, resume=False)
    with pytest.raises(CheckpointError, match="does not exist; check run_name"):
        check_run_folder(store, resume=True)


def test_a_run_with_checkpoints_goes_on_only_when_asked(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, tmp_path)
    check_run_folder(store, resume=True)
    with pytest.raises(ConfigError, match="already holds 1 checkpoints, the latest of step 20; go on with --resume"):
        check_run_folder(store, resume=False)


def test_a_run_that_ended_before_its_first_checkpoint(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever starts a job again after a failure need not know how far it came."""
    write_bytes(store.storage, "job.yaml", b"model_id: a")
    check_run_folder(store, resume=False)
    with caplog.at_level("INFO"):
        check_run_folder(store, resume=True)
    assert "has no complete checkpoint yet" in caplog.text


def info(**metadata: JsonValue) -> CheckpointInfo:
    return CheckpointInfo(NAME, 20, 2, datetime.now(timezone.utc), metadata, ())


@pytest.mark.parametrize(
    ("num_devices", "accumulation", "micro_batch", "fits"),
    [(2, 1, 4, True), (1, 2, 4, True), (4, 2, 1, True), (4, 1, 4, False), (1, 1, 4, False)],
)
def test_the_position_holds_for_any_split_of_the_same_steps(
    num_devices: int, accumulation: int, micro_batch: int, fits: bool, make_job: MakeJob
) -> None:
    job = make_job(
        model_id="a",
        num_devices=num_devices,
        gradient_accumulation_steps=accumulation,
        train_batch_size_per_device=micro_batch,
    )
    if fits:
        check_continuity(info(data="data/0a1b", sequences_per_step=8), job, "data/0a1b")
    else:
        with pytest.raises(CheckpointError, match=f"{NAME} was trained with 8 sequences a step") as caught:
            check_continuity(info(data="data/0a1b", sequences_per_step=8), job, "data/0a1b")
        assert "set these three so that their product is 8" in str(caught.value)


def test_the_position_holds_for_the_same_data_only(make_job: MakeJob) -> None:
    job = make_job(model_id="a", train_batch_size_per_device=8)
    with pytest.raises(CheckpointError, match=r"trained on other data \(data/0a1b, now data/9f8e\)"):
        check_continuity(info(data="data/0a1b", sequences_per_step=8), job, "data/9f8e")
    check_continuity(info(), job, "data/9f8e")  # written before this was kept

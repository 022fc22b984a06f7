"""Whole runs that are stopped, stalled and interrupted, one fault after the other in few processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmforge.checkpoint.store import CheckpointStore
from llmforge.storage.base import open_storage
from tests.faults.driver_process import DriverProcess, Hit, driver_environment
from tests.faults.site import REPOSITORY
from tests.ray_fixtures import MakeJob

pytestmark = pytest.mark.slow

SECONDS = 180.0
NUM_STEPS = 30
SAVE_INTERVAL_STEPS = 10
STALL_SECONDS = 15


@pytest.fixture
def job(make_job: MakeJob, small_model: Path, real_rows: list[str], tmp_path: Path) -> Path:
    """A job file; the workers have dropout, and a share each of the optimizer."""
    (tmp_path / "train.jsonl").write_text("\n".join(real_rows[:60]))
    job = make_job(
        model_id=str(small_model),
        num_devices=2,
        max_steps=NUM_STEPS,
        checkpoint_and_evaluation_frequency={"unit": "steps", "frequency": SAVE_INTERVAL_STEPS},
        num_checkpoints_to_keep=100,
        dataset={"valid_fraction": 0.1},
        lora_config={"r": 4, "lora_dropout": 0.1},
        train_batch_size_per_device=1,
        stall_timeout_seconds=STALL_SECONDS,
    )
    file = tmp_path / "job.yaml"
    file.write_text(job.model_dump_json(exclude_defaults=True))
    return file


def start(job: Path, *arguments: str) -> DriverProcess:
    return DriverProcess(
        [str(job), *arguments], driver_environment(REPOSITORY, job.parent, "http://127.0.0.1:9"), job.parent
    )


def saved_name(hit: Hit) -> str:
    return hit.groups[1]


def test_a_run_that_is_stalled_and_stopped_ends_like_one_that_was_left_alone(job: Path) -> None:
    with start(job, "run_name=whole") as driver:
        assert driver.wait(SECONDS) == 0
    folder = job.parent / "runs" / "troubled"
    with start(job, "run_name=troubled") as driver:
        _stall(driver, folder)
        driver.wait_for(f"step {SAVE_INTERVAL_STEPS}: saved checkpoint", SECONDS)
        driver.send(signal.SIGINT)
        assert driver.wait(SECONDS) == 128 + signal.SIGINT
        stopped = driver.hits(r"stopped at step (\d+), saved as (\S+)")[0]
        assert driver.hits(r"go on: llmforge train \S+ run_name=troubled --resume")
    assert CheckpointStore(open_storage(str(folder))).list()[-1].name == saved_name(stopped)
    with start(job, "run_name=troubled", "--resume") as driver:
        assert driver.wait_for(r"resuming \S+ from step (\d+)", SECONDS).groups == stopped.groups[:1]
        assert driver.wait(SECONDS) == 0
    assert _curves(folder) == _curves(job.parent / "runs" / "whole")
    _compare_bytes(job.parent / "runs" / "whole", folder)


def _stall(driver: DriverProcess, folder: Path) -> None:
    """Stop one rank as a hanging driver or disk would, before there is any checkpoint."""
    driver.wait_for("step 1 of", SECONDS)
    victim = driver.workers()[-1]
    victim.suspend()
    stalled = driver.wait_for(
        r"stalled: nothing has moved for \d+ s: (.*); the stacks of all ranks are in (\S+);", SECONDS
    )
    stacks = Path(stalled.groups[1]).read_text()
    assert Path(stalled.groups[1]).parent == folder / "stalls"
    assert "the process does not answer (its state: stopped)" in stacks
    assert 'train/loop.py", line' in stacks
    assert f"pid {victim.pid}" in stacks
    failure = driver.wait_for("failure: ", SECONDS)
    driver.wait_until(lambda: not victim.is_running(), SECONDS, "the stalled process is still there")
    driver.wait_for("there is no checkpoint yet: training starts over", SECONDS, since=failure.at)


def _curves(folder: Path) -> list[tuple[int, float | None, float | None]]:
    """Step, loss and evaluation loss of every record, in the order of the file."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record.get("train/loss"), record.get("eval/loss")) for record in records]


def _compare_bytes(first: Path, second: Path) -> None:
    folders = [
        folder / "checkpoints" / CheckpointStore(open_storage(str(folder))).list()[-1].name
        for folder in (first, second)
    ]
    for name in ("adapter_model.safetensors", "optimizer/rank-00000.safetensors", "optimizer/rank-00001.safetensors"):
        expected, found = (load_file(folder / name) for folder in folders)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in folders]
    assert states[0] == states[1]

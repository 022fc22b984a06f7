"""A run on nodes that share nothing but S3, with as many workers as there are nodes: one is lost, another comes.

At the end all are lost, and there is nothing left that could be saved.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.checkpoint.store import CheckpointStore
from llmforge.metrics.loggers import read_metrics
from llmforge.storage.base import open_storage
from tests.faults.cluster import open_nodes
from tests.faults.driver_process import DriverProcess, driver_environment
from tests.faults.site import REPOSITORY
from tests.ray_fixtures import MakeJob
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SECONDS = 240.0
NUM_ROWS = 600
SAVE_INTERVAL_STEPS = 20


@pytest.fixture
def job(
    make_job: MakeJob, small_model: Path, material: Path, s3_client: S3Client, s3_bucket: str, tmp_path: Path
) -> Path:
    """Two files of data, and far more steps than there will be time for."""
    lines = (material / "data" / "chat" / "gsm8k-train.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    for half in range(2):
        body = "\n".join(lines[half::2]).encode()
        s3_client.put_object(Bucket=s3_bucket, Key=f"data/{half}.jsonl", Body=body)
    job = make_job(
        model_id=str(small_model),
        train_path=[f"s3://{s3_bucket}/data/{half}.jsonl" for half in range(2)],
        output_dir=f"s3://{s3_bucket}/runs",
        num_devices={"min": 1, "max": 2, "resize_interval_seconds": 1},
        gradient_accumulation_steps=2,
        train_batch_size_per_device=1,
        max_steps=100_000,
        checkpoint_and_evaluation_frequency={"unit": "steps", "frequency": SAVE_INTERVAL_STEPS},
        lora_config={"r": 4},
        num_data_blocks_per_device=8,
    )
    file = tmp_path / "job.yaml"
    file.write_text(job.model_dump_json(exclude_defaults=True))
    return file


def test_a_run_follows_its_nodes(job: Path, s3_environment: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    environment = driver_environment(REPOSITORY, tmp_path, s3_environment.url)
    del environment["RAY_OVERRIDE_RESOURCES"]
    hidden = [tmp_path / "cache", tmp_path / "tmp"]
    hidden[0].mkdir()
    with open_nodes(environment, head_cpus=0) as nodes:
        first, second = (nodes.add_apart(tmp_path / name, hidden) for name in ("first", "second"))
        environment["RAY_ADDRESS"] = nodes.address
        arguments = [str(job), "run_name=elastic", "resource_timeout_seconds=120"]
        with DriverProcess(arguments, environment, tmp_path) as driver:
            driver.wait_for("starting 2 workers, of 2 at most", SECONDS)
            assert all(_data_files(node.folder) for node in (first, second))
            saved = driver.wait_for(r"step (\d+): saved checkpoint (\S+)", SECONDS)
            driver.wait_until(
                lambda: len(_losses(tmp_path)) > int(saved.groups[0]) + 3, SECONDS, "training does not go on"
            )
            by_two = _losses(tmp_path)
            second.lose()
            resumed = driver.wait_for(r"resuming \S+ from step (\d+) \((\S+)\)", SECONDS)
            assert driver.hits("starting 1 workers, of 2 at most") and driver.hits("failure: ")
            third = nodes.add_apart(tmp_path / "third", hidden)
            driver.wait_for("the cluster has places for 2 workers now: saving", SECONDS)
            grown = driver.wait_for(r"resuming \S+ from step (\d+) \((\S+)\)", SECONDS, since=resumed.at + 0.1)
            last = driver.hits(r"step (\d+): saved checkpoint (\S+)")[-1]
            assert grown.groups == last.groups  # no step is lost
            driver.wait_until(lambda: len(_losses(tmp_path)) > int(grown.groups[0]) + 3, SECONDS, "no step since")
            for node in (first, third):
                node.lose()
            driver.wait_for(r"waiting for 1 x \{CPU: 1\}: 0 free", SECONDS, since=grown.at)
            driver.send(signal.SIGINT)
            assert driver.wait(SECONDS) == 128 + signal.SIGINT
            assert driver.hits("left at once; --resume goes on")
    store = CheckpointStore(open_storage(f"s3://{s3_bucket}/runs/elastic"))
    newest = store.list()[-1]
    assert store.verify(newest) == [] and newest.step >= int(grown.groups[0]) > int(resumed.groups[0])
    store.storage.download("metrics.jsonl", tmp_path / "metrics.jsonl")
    losses = {
        record["step"]: record["train/loss"]
        for record in read_metrics(tmp_path / "metrics.jsonl")
        if "train/loss" in record
    }
    assert list(losses) == list(range(1, len(losses) + 1)) and len(losses) >= newest.step
    repeated = range(int(resumed.groups[0]) + 1, len(by_two) + 1)
    assert len(repeated) >= 3
    for step in repeated:
        assert losses[step] == pytest.approx(by_two[step - 1], rel=1e-5)


def _data_files(folder: Path) -> list[Path]:
    """What a node has fetched to work on."""
    return list((folder / "cache").rglob("*.jsonl"))


def _losses(folder: Path) -> list[float]:
    """By step, as the driver has them now."""
    (file,) = folder.glob("tmp/llmforge-run-*/metrics.jsonl")
    records = (json.loads(line) for line in file.read_text().splitlines())
    return [record["train/loss"] for record in records if "train/loss" in record]

"""A node that is taken away: after the notice all ranks save at once, and the run goes on with another node.

At the end it is left in a hurry.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.faults.cluster import Nodes, open_nodes
from tests.faults.driver_process import DriverProcess, driver_environment
from tests.faults.site import REPOSITORY
from tests.ray_fixtures import MakeJob

pytestmark = pytest.mark.slow

SECONDS = 180.0
NOTICE_SECONDS = 600


@pytest.fixture
def job(make_job: MakeJob, small_model: Path, real_rows: list[str], tmp_path: Path) -> Path:
    """Far more steps than there will be time for."""
    (tmp_path / "train.jsonl").write_text("\n".join(real_rows))
    job = make_job(
        model_id=str(small_model),
        num_devices=2,
        max_steps=100_000,
        checkpoint_and_evaluation_frequency={"unit": "steps", "frequency": 40_000},
        lora_config={"r": 4},
        train_batch_size_per_device=1,
        max_failures=1,
    )
    file = tmp_path / "job.yaml"
    file.write_text(job.model_dump_json(exclude_defaults=True))
    return file


def test_a_node_is_lost_after_notice(job: Path, tmp_path: Path) -> None:
    environment = driver_environment(REPOSITORY, tmp_path, "http://127.0.0.1:9")
    del environment["RAY_OVERRIDE_RESOURCES"]
    with open_nodes(environment) as nodes:
        lost = nodes.add()
        environment["RAY_ADDRESS"] = nodes.address
        with DriverProcess([str(job), "run_name=spot"], environment, tmp_path) as driver:
            driver.wait_for("step 1 of", SECONDS)
            _take_away(nodes, lost, driver)
            _leave_at_once(driver)
    (saved,) = driver.hits(r"step (\d+): saved checkpoint")
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "runs" / "spot" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > int(saved.groups[0])


def _leave_at_once(driver: DriverProcess) -> None:
    """The second signal comes while the workers are still being asked for the first one's sake."""
    driver.send(signal.SIGTERM)
    driver.wait_for("stopping: ", SECONDS)
    driver.send(signal.SIGTERM)
    assert driver.wait(SECONDS) == 128 + signal.SIGINT
    assert driver.hits("left at once; --resume goes on")
    assert not driver.hits("stopped at step")


def _take_away(nodes: Nodes, node: object, driver: DriverProcess) -> None:
    nodes.announce_loss(str(getattr(node, "node_id")), NOTICE_SECONDS)  # noqa: B009 - ray is untyped
    driver.wait_for(r"the node of rank \d will be taken away at .* \(notice of preemption\): saving at once", SECONDS)
    saved = driver.wait_for(r"step (\d+): saved checkpoint (\S+)", SECONDS)
    nodes.add()
    nodes.lose(node)
    failure = driver.wait_for(r"failure: (.*); starting the workers again", SECONDS)
    resumed = driver.wait_for(r"resuming \S+ from step (\d+) \((\S+)\)", SECONDS, since=failure.at)
    assert resumed.groups == saved.groups
    driver.wait_for("step .* of", SECONDS, since=resumed.at)

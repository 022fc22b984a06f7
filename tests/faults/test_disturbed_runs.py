"""Whole runs, killed and disturbed at random moments, in a short form; benchmarks/faults.py has the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import END, Expected, disturbed_runs, undisturbed_run
from tests.faults.driver_process import DriverError
from tests.faults.site import REPOSITORY, Material, Plan, Site, open_site
from tests.faults.strikes import KILLS, NETWORK_FAULTS, draw_kinds

SECONDS = 300.0


@pytest.fixture(scope="module")
def site(s3_server_bin: Path, small_model: Path, material: Path) -> Iterator[Site]:
    rows = material / "data" / "chat" / "gsm8k-train.jsonl"
    plan = Plan(num_steps=40, save_interval_steps=4, calm_seconds=3, spares_first_save=True)
    with open_site(Material(s3_server_bin, small_model, rows), plan) as site:
        yield site


@pytest.fixture(scope="module")
def expected(site: Site) -> Expected:
    """Of a run that is left alone."""
    return undisturbed_run(site, "lora")


@pytest.mark.slow
@pytest.mark.soak
def test_a_run_survives_what_happens_to_it(site: Site, expected: Expected) -> None:
    kinds = ["bursts of 500 and 503", "worker", "server", "driver", "uploads broken"]
    *incidents, end = disturbed_runs(site, seed=1, kinds=kinds, expected={"lora": expected})
    assert [problem for incident in (*incidents, end) for problem in incident.problems] == []
    assert [incident.kind for incident in incidents] == kinds
    assert (end.kind, end.step, end.complete_step) == (END, 40, 40)
    assert {incident.kind for incident in incidents if incident.resumed_step is not None} >= {"worker", "driver"}


@pytest.mark.slow
def test_ranks_survive_what_happens_to_them(s3_server_bin: Path, tmp_path: Path) -> None:
    """A few kill points of the long form, in a process without threads, since it is forked."""
    command = [sys.executable, "benchmarks/faults.py", str(s3_server_bin), "--ranks", "--kill-points", "4"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    results = tmp_path / "results.jsonl"
    done = subprocess.run(
        [*command, "--num-cases", "1", "--results", str(results)], cwd=REPOSITORY, env=environment, capture_output=True
    )
    incidents = [json.loads(line) for line in results.read_text().splitlines()]
    assert (done.returncode, [incident["problems"] for incident in incidents]) == (0, [[]] * 5), done.stderr.decode()
    assert incidents[-1]["kind"] == END


@pytest.mark.slow
def test_a_driver_that_ends_is_not_waited_for(site: Site) -> None:
    with site.driver("not/a/name", "lora", resume=False) as driver:
        with pytest.raises(DriverError, match=r"(?s)no line 'never': the driver has ended with 2\n.*run_name"):
            driver.wait_for("never", SECONDS)
        assert driver.wait(SECONDS) == 2
        assert driver.processes() == []


def test_the_kinds_are_drawn_until_there_are_enough_kill_points() -> None:
    kinds = draw_kinds(200, seed=1)
    assert sum(kind in KILLS for kind in kinds) == 200
    assert kinds[-1] in KILLS
    assert set(kinds) == KILLS.keys() | NETWORK_FAULTS.keys()
    assert kinds == draw_kinds(200, seed=1) != draw_kinds(200, seed=2)

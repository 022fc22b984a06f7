"""Whole runs, killed and disturbed at random moments, in a short form; benchmarks/faults.py has the long one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.campaign import END, RESUMING, SAVED, Expected, disturbed_runs, undisturbed_run
from tests.faults.cluster import open_nodes
from tests.faults.driver_process import DriverError
from tests.faults.site import Material, Plan, Site, open_site
from tests.faults.strikes import KILLS, NETWORK_FAULTS, draw_kinds

SECONDS = 300.0


@pytest.fixture(scope="module")
def site(s3_server_bin: Path, small_model: Path, material: Path) -> Iterator[Site]:
    rows = material / "data" / "chat" / "gsm8k-train.jsonl"
    plan = Plan(num_steps=40, save_interval_steps=4, calm_seconds=3)
    with open_site(Material(s3_server_bin, small_model, rows), plan) as site:
        yield site


@pytest.fixture(scope="module")
def expected(site: Site) -> Expected:
    """Of a run that is left alone."""
    return undisturbed_run(site, "lora")


@pytest.mark.slow
def test_a_run_survives_what_happens_to_it(site: Site, expected: Expected) -> None:
    kinds = ["bursts of 500 and 503", "worker", "server", "driver", "uploads broken"]
    *incidents, end = disturbed_runs(site, seed=1, kinds=kinds, expected={"lora": expected})
    assert [problem for incident in (*incidents, end) for problem in incident.problems] == []
    assert [incident.kind for incident in incidents] == kinds
    assert (end.kind, end.step, end.complete_step) == (END, 40, 40)
    assert {incident.kind for incident in incidents if incident.resumed_step is not None} >= {"worker", "driver"}


@pytest.mark.slow
def test_a_node_is_lost_and_another_joins(site: Site, expected: Expected) -> None:
    judge = site.judge("node")
    judge.expected = expected
    environment = site.environment
    del environment["RAY_OVERRIDE_RESOURCES"]
    with open_nodes(environment) as nodes:
        lost = nodes.add()
        environment["RAY_ADDRESS"] = nodes.address
        with site.driver("node", "lora", resume=False, environment=environment) as driver:
            saved = driver.wait_for(SAVED, SECONDS)
            nodes.lose(lost)
            newest = judge.look().newest
            assert newest is not None and newest.step >= 4
            nodes.add()
            resuming = driver.wait_for(RESUMING, SECONDS, since=saved.at)
            assert int(resuming.groups[0]) >= newest.step
            assert driver.wait(SECONDS) == 0
            judge.announced.update(hit.groups[0] for hit in driver.hits(SAVED))
    sight = judge.look(again=True)
    assert sight.problems == ()
    assert sight.newest is not None and sight.newest.step == 40


@pytest.mark.slow
def test_nothing_is_left_of_a_driver_that_was_killed(site: Site) -> None:
    with site.driver("killed", "lora", resume=False) as driver:
        driver.wait_for("starting workers", SECONDS)
        driver.wait_until(lambda: len(driver.workers()) == 2, SECONDS, "no workers")
        started = driver.processes()
        assert set(driver.workers()) < set(started)
        driver.kill()
        assert driver.exit_code == -9
        assert driver.processes() == []
        assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in started)


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

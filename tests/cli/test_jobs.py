"""Runs of a cluster that are watched, stopped and gone on with; a server answers as the dashboard of Ray does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, refusal
from tests.jobs.dashboard import Dashboard


def test_a_kill_is_for_the_driver_of_that_run_alone(command: Command, dashboard: Dashboard) -> None:
    command("submit", "job.yaml", "run_name=one")
    dashboard.jobs["one"] |= {"driver_info": {"pid": "4711", "node_ip_address": "10.0.0.1"}, "driver_node_id": "1d8b"}
    assert command("stop", "one", "--now").exit_code == 0
    kill = dashboard.jobs["one--kill-1"]
    assert kill["entrypoint"] == "grep -qzF one /proc/4711/environ && kill -KILL 4711"
    assert kill["entrypoint_label_selector"] == {"ray.io/node-id": "1d8b"}
    assert [run["run"] for run in json.loads(command("jobs", "--json").stdout)["runs"]] == ["one"]


def test_a_run_goes_on_from_what_was_submitted(command: Command, dashboard: Dashboard, tmp_path: Path) -> None:
    command("submit", "job.yaml", "run_name=one")
    assert refusal(command("resume", "one")).startswith("one is running; look with")
    dashboard.end("one", "STOPPED")
    packages = dict(dashboard.packages)
    dashboard.packages.clear()
    (tmp_path / "job.yaml").unlink()
    assert command("resume", "one").stdout == "one\n"
    assert dashboard.packages == packages
    request = dashboard.jobs["one--2"]
    assert str(request["entrypoint"]).endswith(" --resume")
    assert request["runtime_env"] == dashboard.jobs["one"]["runtime_env"]
    dashboard.end("one--2", "FAILED", 1)
    assert command("resume", "one").exit_code == 0
    assert str(dashboard.jobs["one--3"]["entrypoint"]).count("--resume") == 1
    runs = json.loads(command("jobs", "--json").stdout)["runs"]
    assert [(run["run"], run["attempt"], run["state"]) for run in runs] == [("one", 3, "running")]


def test_a_run_whose_files_are_gone_goes_on_from_its_job_file(command: Command, dashboard: Dashboard) -> None:
    command("submit", "job.yaml", "run_name=one")
    dashboard.end("one", "STOPPED")
    dashboard.packages.clear()
    for kept in Path("cache/submitted").iterdir():
        kept.unlink()
    assert refusal(command("resume", "one")).endswith("llmforge submit JOB.yaml run_name=one --resume")
    assert command("submit", "job.yaml", "run_name=one", "--resume").exit_code == 0
    assert str(dashboard.jobs["one--2"]["entrypoint"]).endswith(" --resume")
    assert refusal(command("submit", "job.yaml", "--resume")).startswith("--resume: found no run_name")


def test_the_exit_code_of_status_says_how_a_run_is(command: Command, dashboard: Dashboard) -> None:
    command("submit", "job.yaml", "run_name=one")
    assert command("status", "one").exit_code == 3
    dashboard.end("one", "FAILED", 127)
    failed = command("status", "one")
    assert failed.exit_code == 1
    assert "  reason     the cluster has no llmforge: install llmforge[train] in its image" in failed.stdout


def test_status_and_logs_read_the_lines_of_the_run(command: Command, dashboard: Dashboard) -> None:
    command("submit", "job.yaml", "run_name=one")
    training = {"first_step": 0, "step": 20, "max_steps": 80, "loss": 1.25, "seconds_left": 90.0, "of_a_newer": 1}
    dashboard.logs["one"] = "\n".join(
        [
            "2026-11-21 18:00:00,123\tINFO job_manager.py:568 -- Runtime env is setting up.",
            "Running entrypoint for job one: exec llmforge train job.yaml",
            '{"llmforge": "progress", "at": 5.0, "phase": {"name": "starting Ray", "start_seconds": 5.0}}',
            "a warning of some library",
            '{"llmforge": "progress", "at": 9.0, "text": "step 20: saved checkpoint x"}',
            json.dumps({"llmforge": "progress", "at": 9.5, "training": training}),
        ]
    )
    told = json.loads(command("status", "one", "--json").stdout)
    assert {key: told[key] for key in ("step", "max_steps", "loss", "seconds_left", "phase")} == {
        "step": 20,
        "max_steps": 80,
        "loss": 1.25,
        "seconds_left": 90.0,
        "phase": None,
    }
    text = command("status", "one").stdout
    assert "  training   step 20 of 80, loss 1.2500, 1 min 30 s left\n" in text
    assert text.endswith("  last lines\n    a warning of some library\n    step 20: saved checkpoint x\n")
    assert command("logs", "one").stdout.splitlines() == [
        "starting Ray",
        "a warning of some library",
        "step 20: saved checkpoint x",
        "step 20 of 80, loss 1.2500, 1 min 30 s left",
    ]
    lines = [json.loads(line) for line in command("logs", "one", "--json").stdout.splitlines()]
    assert [line.get("llmforge") for line in lines] == [None, None, "progress", None, "progress", "progress"]
    assert lines[3] == {"text": "a warning of some library"}


def test_a_run_that_is_not_there(command: Command, dashboard: Dashboard) -> None:
    assert command("jobs").stdout == f"{dashboard.url}: no runs yet; llmforge submit JOB.yaml starts one\n"
    command("submit", "job.yaml", "run_name=support-bot")
    for words in (["status"], ["logs"], ["stop"], ["resume"]):
        assert refusal(command(*words, "suport-bot")).startswith(
            f"suport-bot: {dashboard.url} knows no run of this name (did you mean support-bot?); the latest there: "
            "support-bot. A cluster forgets its jobs when its head starts anew"
        )


def test_a_stop_waits_for_the_end(command: Command, dashboard: Dashboard) -> None:
    command("submit", "job.yaml", "run_name=one")
    dashboard.logs["one"] = "before\n"
    stopped = command("stop", "one")
    assert (stopped.exit_code, stopped.stdout) == (0, "one: stopped\n")
    assert "before" not in stopped.stderr
    assert command("stop", "one").stdout == "one: stopped\n"
    assert sum(request.endswith("/stop") for request in dashboard.requests) == 1


def test_a_cluster_that_wants_a_token(command: Command, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = "t0ken"
    assert refusal(command("jobs")) == (
        f"{dashboard.url}: the cluster wants to know who asks (HTTP 401); set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH "
        "to a file that holds its token"
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    done = command("submit", "job.yaml", "run_name=one")
    assert done.exit_code == 0
    assert "t0ken" not in done.output + json.dumps(dashboard.jobs)


def test_an_address_where_no_cluster_is(command: Command, dashboard: Dashboard) -> None:
    assert refusal(command("jobs", "--address", f"{dashboard.url}/elsewhere")).startswith(
        f"{dashboard.url}/elsewhere/api/jobs/: the cluster refused (HTTP 404): 404: Not Found"
    )
    assert refusal(command("jobs", "--address", "http://127.0.0.1:9")).startswith(
        "http://127.0.0.1:9: no answer ([Errno 111] Connection refused); is the cluster up"
    )

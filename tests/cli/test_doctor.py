"""`llmforge doctor`: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmforge.cli.main import app
from tests.cli.conftest import Llmforge


@pytest.fixture
def nobody() -> str:
    """The address of a dashboard that does not run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that has no credentials, and whose own address of a cluster is not used."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "RAY_ADDRESS", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))


def test_what_would_stop_a_job_is_an_exit_code(nobody: str, tmp_path: Path) -> None:
    runs, file = tmp_path / "runs", tmp_path / "file"
    file.write_text("")
    storages = ["--storage", str(runs), "--storage", str(file / "runs")]
    done = CliRunner().invoke(app, ["doctor", "--json", "--address", nobody, *storages])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    states = [(check["name"], check["state"]) for check in said["checks"]]
    assert said["ok"] is False
    assert states[0] == ("python", "ok")
    assert states[-1] == ("clock", "note")
    assert [state for name, state in states if name == "ray"] == ["failure"]
    assert [state for name, state in states if name == "storage"] == ["note", "ok", "failure"]
    assert "communication" not in dict(states)  # the cluster computes, not this machine


def test_people_read_what_to_do(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert f"failure  ray: {nobody} does not answer: Connection refused\n         check that the cluster" in done.stdout
    assert done.stdout.endswith("checks found what would stop a job\n")


@pytest.mark.slow
def test_a_storage_and_the_clock_of_its_server(llmforge: Llmforge, machine: dict[str, str], s3_bucket: str) -> None:
    machine |= {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    done = llmforge(
        "doctor", "--json", "--storage", f"s3://{s3_bucket}/runs", "--storage", "s3://no-such-bucket-x/runs"
    )
    checks = json.loads(done.stdout)["checks"]
    found = {state: text for name, state, text, _ in (check.values() for check in checks) if name == "storage"}
    assert done.returncode == 1
    assert found["ok"] == f"s3://{s3_bucket}/runs: written, listed, read and removed a small file"
    assert "NoSuchBucket" in found["failure"]
    assert next(check["state"] for check in checks if check["name"] == "clock") == "ok"
    assert next(check["state"] for check in checks if check["name"] == "deepspeed") == "ok"
    assert not any(value in done.stdout for key, value in machine.items() if key == "AWS_SECRET_ACCESS_KEY")

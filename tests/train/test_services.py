"""The logging services of a run, from the job to what each service holds in the end."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.errors import LoggerError
from llmforge.storage.base import open_storage
from llmforge.train.services import LOGGERS_FILE, RunServices, check_services, params_of
from tests.metrics.wandb_files import config, read_records, rows, summary
from tests.train.mlflow_server import MlflowServer


class Driver:
    """One start of a run: what its record tells the services."""

    def __init__(self, folder: Path, job: JobConfig, *, resume: bool = False, close_seconds: float = 20.0) -> None:
        self.told: list[str] = []
        self.folder = folder
        self.services = RunServices(CheckpointStore(open_storage(str(folder))), close_seconds=close_seconds)
        self.services.open(job, resume=resume, tell=self.told.append)

    def begins(self, step: int = 0) -> None:
        self.services.begin(step, [{"step": kept, "train/loss": kept / 8} for kept in range(1, step + 1)])

    def steps(self, *steps: int) -> None:
        for step in steps:
            self.services.log({"train/loss": step / 8}, step)

    @property
    def remembered(self) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = json.loads((self.folder / LOGGERS_FILE).read_text())
        return found


@pytest.fixture
def mlflow_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Found by `LLMFORGE_MLFLOW_SERVER_BIN` or in `.venv-mlflow/bin`."""
    folder = Path(os.environ.get("LLMFORGE_MLFLOW_SERVER_BIN") or repository / ".venv-mlflow" / "bin")
    if not (folder / "mlflow").is_file():
        pytest.skip(f"no MLflow server in {folder}: scripts/test installs one into .venv-mlflow")
    server = MlflowServer(folder / "mlflow", tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


def make_job(**logger: object) -> JobConfig:
    return JobConfig.model_validate(
        {
            "model_id": "meta-llama/Meta-Llama-3-8B-Instruct",
            "train_path": ["a.jsonl", "b.jsonl"],
            "lora_config": {"r": 4},
            "run_name": "bot-3",
            "logger": logger,
        }
    )


def fail(driver: Driver) -> None:
    """End it as an error ends it."""
    with pytest.raises(RuntimeError), driver.services:
        raise RuntimeError


def test_parameters_are_the_job_with_dotted_keys() -> None:
    params = params_of(make_job(provider="tensorboard"))
    assert params["model_id"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert params["lora_config.r"] == 4
    assert params["train_path"] == '["a.jsonl", "b.jsonl"]'
    assert params["max_steps"] is None
    assert params["logger.provider"] == "tensorboard"


def test_tensorboard_goes_on_beside_the_run(tmp_path: Path) -> None:
    job = make_job(provider="tensorboard")
    first = Driver(tmp_path, job)
    assert first.told == [f"metrics go to tensorboard as well: {tmp_path / 'tensorboard'}"]
    first.begins()
    first.steps(1, 2)
    first.services.saved("step-00000002-ab12")
    first.steps(3, 4)
    fail(first)
    assert first.remembered["tensorboard -"]["sent"] == {"train/loss": 4}
    second = Driver(tmp_path, job, resume=True)
    second.begins(2)
    second.steps(3, 4, 5)
    with second.services:
        second.services.stopped()

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, step / 8) for step in (1, 2, 3, 4, 5)
    ]
    assert b"| status | stopped |" in events.Tensors("status")[-1].tensor_proto.string_val[0]
    latest = f"| latest_checkpoint | {tmp_path / 'checkpoints' / 'step-00000002-ab12'} |"
    assert any(latest.encode() in event.tensor_proto.string_val[0] for event in events.Tensors("links"))


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    for name in ("HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT", "SUPPRESS_PRINTING_URL_TO_STDOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", {"HTTP_REQUEST_TIMEOUT": "5"}.get(name, "0"))
    with pytest.raises(LoggerError) as refusal:
        check_services(make_job(provider="mlflow"))
    assert str(refusal.value).startswith(f"mlflow: http://127.0.0.1:{port}: ")
    assert "check tracking_uri and whether the server runs, and MLFLOW_TRACKING_USERNAME" in str(refusal.value)


@pytest.mark.slow
def test_wandb_keeps_an_offline_run_under_one_id(tmp_path: Path) -> None:
    settings = {"mode": "offline", "dir": str(tmp_path), "project": "bots", "tags": ["a"]}
    job = make_job(provider="wandb", provider_config=settings)
    check_services(job)
    first = Driver(tmp_path / "run", job)
    first.begins()
    first.steps(1, 2, 3, 4)
    fail(first)
    run_id = first.remembered["wandb - bots"]["run_id"]
    second = Driver(tmp_path / "run", job, resume=True)
    second.begins(2)
    second.steps(3, 4, 5)
    with second.services:
        pass

    before, after = (list(read_records(path)) for path in sorted(tmp_path.glob(f"wandb/*-{run_id}/*.wandb")))
    losses = [{"step": step, "train/loss": step / 8} for step in (1, 2, 3, 4, 5)]
    assert rows(before) + rows(after) == losses
    assert config(after)["lora_config.r"] == 4
    assert (summary(before)["status"], summary(after)["status"]) == ("failed", "finished")
    assert summary(after)["links/report"] == str(tmp_path / "run" / "report.html")
    (run,) = [record.run for record in after if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name, list(run.tags)) == (run_id, "bots", "bot-3", ["a"])


@pytest.mark.slow
def test_mlflow_goes_on_after_its_server_died(
    mlflow_server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It dies after step 2; the run has a checkpoint of step 4, which the server hears of when both are back."""
    settings = {"tracking_uri": mlflow_server.url, "experiment_name": "bots", "tags": {"team": "a"}}
    job = make_job(provider="mlflow", provider_config=settings)
    check_services(job)
    first = Driver(tmp_path, job, close_seconds=1.0)
    first.begins()
    first.steps(1, 2)
    (place,) = first.remembered
    run_id = str(first.remembered[place]["run_id"])
    first.services.saved("step-00000002-ab12")  # once this is there, the driver knows that what came before it is
    mlflow_server.wait_until(lambda: "llmforge.latest_checkpoint" in mlflow_server.run(run_id).tags)
    assert len(mlflow_server.points(run_id, "train/loss")) == 2
    assert mlflow_server.run(run_id).status == "RUNNING"
    mlflow_server.stop()
    with caplog.at_level(logging.WARNING, logger="llmforge"):
        first.steps(3, 4)
        fail(first)
    assert "mlflow: 2 records did not get there; metrics.jsonl in the folder of the run has them all" in caplog.messages
    assert first.remembered[place]["sent"] == {"train/loss": 2}

    mlflow_server.start()
    second = Driver(tmp_path, job, resume=True)
    second.begins(4)
    second.steps(5)
    with second.services:
        second.services.saved("step-00000005-ab12")
    assert mlflow_server.points(run_id, "train/loss") == [(step, step / 8) for step in (1, 2, 3, 4, 5)]
    run = mlflow_server.run(run_id)
    assert (run.name, run.status, run.params["lora_config.r"], run.tags["team"]) == ("bot-3", "FINISHED", "4", "a")
    assert run.tags["llmforge.latest_checkpoint"] == str(tmp_path / "checkpoints" / "step-00000005-ab12")

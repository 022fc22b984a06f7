"""From a laptop to a real cluster and back: a run is submitted, watched, stopped with its state saved, and goes on.

One cluster for all; the laptop and the nodes have different secrets in their environments, and neither may be found
anywhere but there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.ray_head import RayHead, ask, open_ray_head
from tests.ray_fixtures import PROMPT_FORMAT

pytestmark = pytest.mark.slow

SECONDS = 300.0
NUM_STEPS = 100
SECRET_NAMES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY")
CLUSTER_SECRETS = {name: f"of-the-cluster-{name.lower()}-7f3a" for name in SECRET_NAMES}
LAPTOP_SECRETS = {name: f"of-the-laptop-{name.lower()}-91be" for name in SECRET_NAMES}
TOKEN = "of-the-dashboard-3c21b7e05d944f0f8a1be2c9d7e5f602"
LISTS = ("jobs", "actors", "tasks", "workers", "runtime_envs", "nodes", "placement_groups")


@dataclass(frozen=True)
class Laptop:
    """A working folder with a job, and the cluster that it is for."""

    folder: Path
    head: RayHead
    environment: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`llmforge words...` to its end."""
        command = [str(Path(sys.executable).with_name("llmforge")), *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=SECONDS
        )

    def status(self, run: str) -> dict[str, object]:
        """What is told of a run."""
        told = self.run("status", run, "--json")
        found = json.loads(told.stdout)
        assert isinstance(found, dict)
        assert told.returncode == found["exit_code"]
        return found

    def wait_until(self, run: str, is_true: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """What is told of a run once that is true."""
        deadline = time.monotonic() + SECONDS
        while not is_true(told := self.status(run)):
            assert time.monotonic() < deadline, told
            assert told["exit_code"] == 3, (told, self.run("logs", run).stdout)
            time.sleep(1)  # asking takes the processor time that the run needs
        return told


@pytest.fixture(scope="module")
def laptop(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path, real_rows: list[str], repository: Path
) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("laptop")
    shutil.copytree(small_model, folder / "elsewhere" / "model")
    (folder / "elsewhere" / "train.jsonl").write_text("\n".join(real_rows))
    (folder / "work" / "data").mkdir(parents=True)
    (folder / "work" / "data" / "valid.jsonl").write_text("\n".join(real_rows[:4]))
    job = {
        "model_id": "../elsewhere/model",
        "train_path": str(folder / "elsewhere" / "train.jsonl"),
        "valid_path": "data/valid.jsonl",
        "output_dir": str(folder / "runs"),
        "accelerator": "cpu",
        "context_length": 512,
        "train_batch_size_per_device": 1,
        "max_steps": NUM_STEPS,
        "checkpoint_and_evaluation_frequency": {"unit": "steps", "frequency": NUM_STEPS},
        "generation_config": {"prompt_format": PROMPT_FORMAT},
    }
    (folder / "work" / "job.yaml").write_text(json.dumps(job))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "HF_", "WANDB_"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    kept |= {"PYTHONPATH": str(repository), "PATH": path, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    kept |= {"RAY_AUTH_TOKEN": TOKEN}
    nodes = kept | CLUSTER_SECRETS | {"LLMFORGE_CACHE": str(folder / "node-cache")}
    with open_ray_head(nodes, num_cpus=2) as head:
        own = {"RAY_ADDRESS": head.url, "LLMFORGE_CACHE": str(folder / "laptop-cache"), "COLUMNS": "200"}
        yield Laptop(folder / "work", head, kept | LAPTOP_SECRETS | own)


def test_a_run_is_submitted_stopped_and_goes_on(laptop: Laptop) -> None:
    submitted = laptop.run("submit", "job.yaml", "seed=7")
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.strip()
    again = laptop.run("submit", "job.yaml", "seed=7")
    assert (again.returncode, again.stdout) == (2, "")
    assert f"the same job with the same files is pending as {run}" in again.stderr.replace("running", "pending")
    told = laptop.wait_until(run, lambda told: bool(told["step"]))
    assert (told["state"], told["phase"], told["max_steps"]) == ("running", "training", NUM_STEPS)
    stopped = laptop.run("stop", run)
    assert (stopped.returncode, stopped.stdout) == (0, f"{run}: stopped\n"), stopped.stderr
    saved = re.search(r"stopped at step (\d+), saved as (\S+)", stopped.stderr)
    assert saved is not None, stopped.stderr
    assert f"go on: llmforge resume {run}" in stopped.stderr
    assert 0 < int(saved[1]) < NUM_STEPS
    folder = laptop.folder.parent / "runs" / run
    assert (folder / "checkpoints" / saved[2] / "manifest.json").is_file()
    assert laptop.status(run)["state"] == "stopped"

    (laptop.folder / "job.yaml").rename(laptop.folder / "moved.yaml")
    resumed = laptop.run("resume", run, "--wait")
    (laptop.folder / "moved.yaml").rename(laptop.folder / "job.yaml")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == f"{run}\n"
    lines = resumed.stderr.splitlines()
    assert f"resuming {folder} from step {saved[1]} ({saved[2]})" in lines
    assert any(line.startswith(f"step {NUM_STEPS} of {NUM_STEPS}, loss ") for line in lines)
    assert lines[-1] == f"{run}: done"
    assert not any(line.startswith("{") or "job_manager" in line for line in lines)
    assert (folder / "resolved_job.yaml").is_file()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "train/loss" in line] == list(range(1, NUM_STEPS + 1))
    followed = laptop.run("logs", "-f", run)
    assert followed.returncode == 0
    assert f"best checkpoint: {folder}/checkpoints/" in followed.stdout
    listed = json.loads(laptop.run("jobs", "--json").stdout)["runs"]
    assert (run, "done", 2) in [(one["run"], one["state"], one["attempt"]) for one in listed]
    _check_that_no_secret_is_told(laptop)


def test_a_run_that_cannot_be_and_one_that_is_killed(laptop: Laptop) -> None:
    wrong = laptop.run("submit", "job.yaml", "output_dir=/proc/none", "run_name=wrong", "--wait")
    assert wrong.returncode == 2, wrong.stderr
    assert wrong.stderr.splitlines()[-1] == "wrong: failed"
    assert "/proc/none" in wrong.stderr and "Traceback" not in wrong.stderr
    assert laptop.run("submit", "job.yaml", "run_name=killed").returncode == 0
    laptop.wait_until("killed", lambda told: told["phase"] == "preparing data" or bool(told["step"]))
    killed = laptop.run("stop", "killed", "--now", "--json")
    assert killed.returncode == 0, killed.stderr
    assert json.loads(killed.stdout)["state"] == "stopped"
    assert laptop.status("killed")["exit_code"] == 4
    _check_that_no_secret_is_told(laptop)


def _check_that_no_secret_is_told(laptop: Laptop) -> None:
    """By the dashboard, the job table, the logs of Ray, the packages, the folders of the runs."""
    secrets = [value.encode() for value in (*CLUSTER_SECRETS.values(), *LAPTOP_SECRETS.values(), TOKEN)]
    pages = [
        f"{laptop.head.url}/api/jobs/",
        *(f"{laptop.head.url}/api/v0/{name}?detail=1&limit=10000" for name in LISTS),
    ]
    jobs = json.loads(ask(pages[0], TOKEN))
    pages += [f"{laptop.head.url}/api/jobs/{job['submission_id']}/logs" for job in jobs if job["submission_id"]]
    texts = {page: ask(page, TOKEN) for page in pages}
    files = [
        file
        for folder in (laptop.head.folder, laptop.folder.parent)
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    ]
    assert any(file.name.startswith("job-driver-") for file in files)
    texts |= {str(file): file.read_bytes() for file in files}
    assert [place for place, text in texts.items() for secret in secrets if secret in text] == []

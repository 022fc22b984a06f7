"""`llmforge submit`, against a server that answers as Ray's dashboard does."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

from llmforge import __version__
from tests.cli.conftest import CLUSTER_JOB, Command, Llmforge, refusal
from tests.jobs.dashboard import Dashboard


def test_what_the_cluster_gets(command: Command, dashboard: Dashboard) -> None:
    done = command("submit", "job.yaml", "num_epochs=2", "run_name=first", "--json")
    assert done.exit_code == 0, done.output
    (request,) = dashboard.jobs.values()
    (name,) = dashboard.packages
    told = json.loads(done.stdout)
    assert told == {
        "run": "first",
        "submission_id": "first",
        "attempt": 1,
        "address": dashboard.url,
        "run_uri": "s3://bucket/runs/first",
        "package": name,
    }
    assert request["entrypoint"] == (
        f"exec llmforge train job.yaml run_name=first num_epochs=2 --submitted-by {__version__}"
    )
    assert request["runtime_env"] == {
        "working_dir": f"gcs://{name}",
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "2700"},
    }
    metadata = request["metadata"]
    assert isinstance(metadata, dict)
    assert set(metadata) == {
        "llmforge_run",
        "llmforge_attempt",
        "llmforge_content",
        "llmforge_output_dir",
        "llmforge_version",
    }
    with zipfile.ZipFile(BytesIO(dashboard.packages[name])) as archive:
        assert archive.namelist() == ["job.yaml", "data/train.jsonl"]
        assert archive.read("job.yaml").decode() == CLUSTER_JOB


def test_the_laptop_needs_no_more_than_the_light_client(
    command: Command, dashboard: Dashboard, imports_of: Llmforge, machine: dict[str, str]
) -> None:
    """And asks for no more than it, which is also why it starts at once."""
    machine |= {"RAY_ADDRESS": dashboard.url, "RAY_AUTH_MODE": "disabled", "NO_PROXY": "127.0.0.1"}
    heavy = ("ray", "torch", "transformers", "deepspeed", "datasets", "pyarrow", "numpy", "botocore", "matplotlib")
    for words in (("submit", "job.yaml", "run_name=one"), ("stop", "one")):
        told = imports_of(heavy, *words)
        assert told.stdout.splitlines()[-1] == "imported: []", told.stderr
    assert dashboard.jobs["one"]["status"] == "STOPPED"


def test_the_name_of_a_run_is_decided_here(command: Command, dashboard: Dashboard) -> None:
    done = command("submit", "job.yaml")
    name = done.stdout.strip()
    assert done.exit_code == 0
    assert name.startswith("Llama-3.1-8B-Instruct-instruction_tuning-20")
    assert list(dashboard.jobs) == [name]
    assert f"llmforge logs -f {name}" in done.stderr
    assert "s3://bucket/runs/" in done.stderr


def test_the_same_job_twice_is_noticed(command: Command, dashboard: Dashboard) -> None:
    first = command("submit", "job.yaml").stdout.strip()
    again = refusal(command("submit", "job.yaml"))
    assert again.startswith(
        f"the same job with the same files is running as {first}; look with `llmforge status {first}`"
    )
    assert command("submit", "job.yaml", "num_epochs=3").exit_code == 0
    assert command("submit", "job.yaml", "run_name=twin").exit_code == 0
    assert refusal(command("submit", "job.yaml", "run_name=twin", "num_epochs=9")).startswith(
        "run_name: twin is running already; look with"
    )
    assert len(dashboard.packages) == 1
    assert sum(request.startswith("PUT") for request in dashboard.requests) == 1
    dashboard.end("twin", "SUCCEEDED", 0)
    assert refusal(command("submit", "job.yaml", "run_name=twin")) == (
        "run_name: twin has been submitted before and is done; go on with `llmforge resume twin`, or choose another "
        "run_name"
    )


def test_an_output_folder_that_the_cluster_would_lose(command: Command, dashboard: Dashboard) -> None:
    submit = ("submit", "job.yaml", "run_name=one")
    assert refusal(command(*submit, "output_dir=./runs")).startswith(
        "command line: output_dir: found ./runs, allowed is s3://bucket/prefix, or a folder that all nodes see (name "
        "it by --cluster-path, too): it counts from the job's folder"
    )
    dashboard.nodes.append({"CPU": 4.0})
    assert "output_dir: found /mnt/nfs/runs, a local folder; allowed" in refusal(
        command(*submit, "output_dir=/mnt/nfs/runs")
    )
    assert not dashboard.jobs and not dashboard.packages
    done = command(*submit, "output_dir=/mnt/nfs/runs", "--cluster-path", "/mnt/nfs")
    assert done.exit_code == 0


def test_a_cluster_that_is_too_small(command: Command, dashboard: Dashboard) -> None:
    submit = ("submit", "job.yaml", "num_devices=8", "run_name=one")
    assert refusal(command(*submit)) == (
        "num_devices: the cluster is too small for the training workers:\n"
        "  CPU: 8 x 1 = 8 needed, the cluster has 4\n"
        "lower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes, or set "
        "resource_timeout_seconds to wait for nodes that are still to come"
    )
    dashboard.has_autoscaler = True
    done = command(*submit)
    assert done.exit_code == 0
    assert "warning: the job waits until the cluster has grown: num_devices: the cluster is too small" in done.stderr


def test_mistakes_are_found_before_the_cluster_is_asked(command: Command, dashboard: Dashboard, tmp_path: Path) -> None:
    assert "train_path: nowhere.jsonl: no such file" in refusal(
        command("submit", "job.yaml", "train_path=nowhere.jsonl")
    )
    token = "hf_" + "a1B2" * 6
    (tmp_path / "job.yaml").write_text(f"{CLUSTER_JOB}# my token: {token}\n")
    told = refusal(command("submit", "job.yaml"))
    assert told == "job.yaml:6: found what looks like a secret, allowed is none, not even in a comment; remove it"
    (tmp_path / "job.yaml").write_text(CLUSTER_JOB)
    (tmp_path / "env.yaml").write_text(
        f"env_vars: {{HF_TOKEN: abc, OTHER: {token}}}\nworking_dir: .\npip: requirements.txt\npy_modules: [./code]\n"
    )
    told = refusal(command("submit", "job.yaml", "--runtime-env", "env.yaml"))
    assert [line.split(": ")[1] for line in told.splitlines()] == [
        "env_vars.HF_TOKEN",
        "env_vars.OTHER",
        "working_dir",
        "pip",
        "py_modules",
    ]
    assert token not in told and "abc" not in told
    assert not dashboard.jobs and not dashboard.packages


def test_a_runtime_environment_goes_along(command: Command, dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("pip: [llmforge]\nenv_vars: {NCCL_DEBUG: INFO}\n")
    command("submit", "job.yaml", "run_name=one", "--runtime-env", "env.yaml")
    runtime_env = dashboard.jobs["one"]["runtime_env"]
    assert isinstance(runtime_env, dict)
    assert runtime_env["pip"] == ["llmforge"]
    assert runtime_env["env_vars"] == {"NCCL_DEBUG": "INFO", "RAY_JOB_STOP_WAIT_TIME_S": "2700"}

"""The command line as a person has it: the installed program, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmforge.cli.main import app
from llmforge.errors import LlmforgeError
from tests.jobs.dashboard import Dashboard

PROGRAM = Path(sys.executable).parent / "llmforge"
LIMIT_SECONDS = 300

Llmforge = Callable[..., "subprocess.CompletedProcess[str]"]
CLUSTER_JOB = """\
model_id: meta-llama/Llama-3.1-8B-Instruct
train_path: data/train.jsonl
output_dir: s3://bucket/runs
accelerator: cpu
lora_config: {r: 8}
"""
Command = Callable[..., Result]


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where a Ray that the command starts keeps its files; the path of its sockets is bounded, so it is short."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield folder


@pytest.fixture
def machine(tmp_path: Path, ray_folder: str, repository: Path) -> dict[str, str]:
    """The environment of a machine with two CPUs and no cluster."""
    own = {
        "LLMFORGE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(repository),
        "RAY_TMPDIR": ray_folder,
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2}),
        "COLUMNS": "200",
    }
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | own


@pytest.fixture
def llmforge(tmp_path: Path, machine: dict[str, str]) -> Llmforge:
    """`llmforge("train", "job.yaml")`: run the program in `tmp_path`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAM), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=machine, timeout=LIMIT_SECONDS)

    return run


@pytest.fixture
def imports_of(tmp_path: Path, machine: dict[str, str]) -> Llmforge:
    """`imports_of(("torch",), "train", "job.yaml")`: as `llmforge`, with a last line `imported: [...]` on stdout."""

    def run(modules: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import atexit, sys\n"
            f"atexit.register(lambda: print('imported:', sorted(set({modules}) & set(sys.modules))))\n"
            "from llmforge.cli.main import main\n"
            "main()\n"
        )
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=machine, timeout=LIMIT_SECONDS)

    return run


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A server that answers as a cluster would, and an environment that names it."""
    with Dashboard() as server:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("RAY_ADDRESS", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def command(dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("status", "run")`, in a folder with `job.yaml` and `data/train.jsonl`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "job.yaml").write_text(CLUSTER_JOB)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"messages": []}\n')
    return lambda *words: CliRunner().invoke(app, list(words))


def refusal(result: Result) -> str:
    """The words of the error that a command ended with."""
    assert isinstance(result.exception, LlmforgeError), result.output
    return str(result.exception)

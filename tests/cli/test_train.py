"""`llmforge train` of a job that cannot run: the reason on stderr, exit code 2, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.conftest import Llmforge

pytestmark = pytest.mark.slow

Train = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def train(llmforge: Llmforge, quickstart_material: Path, repository: Path) -> Train:
    """`train("key=value", ...)`: the job of the quickstart, for one step, with its files in places of the test."""
    files = {
        "model_id": quickstart_material / "model",
        "train_path": quickstart_material / "data" / "train.jsonl",
        "valid_path": quickstart_material / "data" / "valid.jsonl",
    }
    job = repository / "job_configs" / "quickstart.yaml"
    base = [*(f"{key}={path}" for key, path in files.items()), "output_dir=runs", "max_steps=1"]
    return lambda *overrides: llmforge("train", str(job), *base, *overrides)


def test_more_devices_than_there_are(train: Train, tmp_path: Path) -> None:
    done = train("num_devices=64")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-3:] == [
        "num_devices: the cluster is too small for the training workers:",
        "  CPU: 64 x 1 = 64 needed, the cluster has 2",
        "lower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes, or set "
        "resource_timeout_seconds to wait for nodes that are still to come",
    ]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()

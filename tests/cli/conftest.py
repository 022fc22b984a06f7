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

PROGRAM = Path(sys.executable).parent / "llmforge"

Llmforge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where a Ray that the command starts keeps its files; the path of its sockets is bounded, so it is short."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield folder


@pytest.fixture
def llmforge(tmp_path: Path, ray_folder: str) -> Llmforge:
    """`llmforge("train", "job.yaml")`: run the program in `tmp_path`, on a machine with two CPUs and no cluster."""
    own = {
        "LLMFORGE_CACHE": str(tmp_path / "cache"),
        "RAY_TMPDIR": ray_folder,
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2}),
        "COLUMNS": "200",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAM), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=inherited | own | environment, timeout=300
        )

    return run

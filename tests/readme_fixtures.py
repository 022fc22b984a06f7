"""The commands of the README, run once for all tests that look at what they leave behind; named in `pytest_plugins`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LIMIT_SECONDS = 400


@dataclass
class Shell:
    """A folder with the material of the quickstart, in which commands are run as a reader would."""

    folder: Path
    repository: Path
    outputs: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    """Of the README, by the name of the command; the last one where several have it."""

    def run(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run lines of bash, of which none may fail."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.repository),
            "LLMFORGE_CACHE": str(self.folder / "cache"),
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=environment, input=stdin,
            capture_output=True, text=True, timeout=LIMIT_SECONDS,
        )  # fmt: skip


def fenced_blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a Markdown file in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def readme_shell(quickstart_material: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """After the `llmforge` lines of the README's shell blocks, in order."""
    shell = Shell(tmp_path_factory.mktemp("readme"), repository)
    shutil.copytree(quickstart_material, shell.folder / "build" / "quickstart")
    (shell.folder / "job_configs").symlink_to(repository / "job_configs")
    readme = (repository / "README.md").read_text(encoding="utf-8")
    lines = [line for block in fenced_blocks(readme, "sh") for line in block.splitlines()]
    for command in (line for line in lines if line.startswith("llmforge ")):
        done = shell.run(command, stdin="What is the capital of France?\n")
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        shell.outputs[command.split()[1]] = done
    return shell

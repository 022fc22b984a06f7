"""The README's commands, run as they stand there, and every shipped job."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmforge.config.job import load_job

REPOSITORY = Path(__file__).resolve().parent.parent


def shipped_jobs() -> list[Path]:
    return sorted((REPOSITORY / "job_configs").glob("*.yaml"))


def readme_commands() -> list[str]:
    """The `llmforge` lines of the README's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("llmforge ")]


@pytest.mark.parametrize("path", shipped_jobs(), ids=lambda path: path.name)
def test_every_shipped_job_loads(path: Path) -> None:
    assert load_job(path).model_id


@pytest.mark.slow
def test_the_commands_of_the_readme(quickstart_material: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_material, tmp_path / "build" / "quickstart")
    (tmp_path / "job_configs").symlink_to(REPOSITORY / "job_configs")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "LLMFORGE_CACHE": str(tmp_path / "cache"),
    }
    commands = readme_commands()
    used = {command.split()[1] for command in commands}
    assert used == {"validate", "prepare", "preview", "train", "checkpoints", "generate", "chat", "schema"}
    outputs = {}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, input="What is the capital of France?\n",
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        outputs[command.split()[1]] = done
    rows = [json.loads(line) for line in outputs["preview"].stdout.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert all(row["input_ids"][: len(row["prompt"]["input_ids"])] == row["prompt"]["input_ids"] for row in rows)
    assert (tmp_path / "build" / "quickstart" / "preview.html").is_file()
    assert outputs["checkpoints"].stdout.count("complete") >= 1
    assert "Paris" in outputs["generate"].stdout
    assert "Paris" in outputs["chat"].stdout
    assert "best checkpoint: " in outputs["train"].stderr
    assert "llmforge chat" in outputs["train"].stderr

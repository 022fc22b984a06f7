"""`llmforge configs` and `llmforge cp`, in a checkout and from an installed wheel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from typer.testing import CliRunner

from llmforge.cli.main import app
from llmforge.errors import ConfigError


def test_the_list(repository: Path) -> None:
    done = CliRunner().invoke(app, ["configs"])
    assert done.exit_code == 0
    names = [path.stem for path in sorted((repository / "job_configs").glob("*.yaml"))]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert lines[-1].startswith("llmforge cp NAME my-job.yaml")


def test_the_list_for_other_programs(repository: Path) -> None:
    jobs = json.loads(CliRunner().invoke(app, ["configs", "--json"]).stdout)["jobs"]
    mistral = next(job for job in jobs if job["name"] == "mistral-7b-lora")
    path = repository / "job_configs" / "mistral-7b-lora.yaml"
    assert (mistral["model_id"], mistral["method"], mistral["num_devices"], mistral["path"]) == (
        "mistralai/Mistral-7B-Instruct-v0.3", "lora", 2, str(path),
    )  # fmt: skip


def test_a_copy_that_would_replace_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["cp", "quickstart"])
    assert done.exit_code == 0 and "llmforge validate quickstart.yaml" in done.stdout
    done = CliRunner().invoke(app, ["cp", "quickstart"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "quickstart.yaml: found a file here, which is not replaced; remove it or name another"
    done = CliRunner().invoke(app, ["cp", "quickstart.yaml", "mine.yaml"])
    assert (done.exit_code, (tmp_path / "mine.yaml").read_text()) == (0, (tmp_path / "quickstart.yaml").read_text())


@pytest.mark.slow
def test_an_installed_wheel_brings_the_jobs(repository: Path, tmp_path: Path) -> None:
    program = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=repository, check=True, capture_output=True)
    installed = tmp_path / "installed"
    with ZipFile(next(tmp_path.glob("llmforge-*.whl"))) as wheel:
        wheel.extractall(installed)
    program = f"import sys; sys.path.insert(0, {str(installed)!r}); from llmforge.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "configs", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    paths = [Path(job["path"]) for job in json.loads(done.stdout)["jobs"]]
    shipped = sorted((repository / "job_configs").glob("*.yaml"))
    assert {path.parent for path in paths} == {installed / "llmforge" / "job_configs"}
    assert [path.read_text() for path in paths] == [path.read_text() for path in shipped]

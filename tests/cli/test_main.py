"""The program: its commands, its exit codes, what goes to which stream, and what it leaves unimported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmforge import __version__
from llmforge.cli.main import app
from llmforge.config.job import job_json_schema
from tests.cli.conftest import Llmforge

HEAVY = ("torch", "ray", "transformers", "deepspeed", "peft", "numpy", "pyarrow", "boto3")
COMMANDS = (
    "train",
    "checkpoints",
    "validate",
    "preview",
    "schema",
    "generate",
    "chat",
    "serve",
    "export",
    "verify",
    "configs",
    "cp",
    "doctor",
)


@pytest.fixture(autouse=True)
def _job(tmp_path: Path) -> None:
    """A job of which everything is there but a real model."""
    (tmp_path / "model-chatml").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "model-chatml" / name).write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "job.yaml").write_text("model_id: model-chatml\ntrain_path: train.jsonl\n")


def test_help_names_the_commands(llmforge: Llmforge) -> None:
    done = llmforge("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fine-tune large language models on a Ray cluster from one job file." in done.stdout
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], prog_name="llmforge")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: llmforge {command} ")


def test_version(llmforge: Llmforge) -> None:
    done = llmforge("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_an_unknown_command(llmforge: Llmforge) -> None:
    done = llmforge("trian", "job.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'trian'" in done.stderr


def test_no_command_at_all(llmforge: Llmforge) -> None:
    done = llmforge()
    assert done.returncode == 2
    assert "Usage: llmforge" in done.stdout + done.stderr


def test_schema_is_that_of_a_job(llmforge: Llmforge) -> None:
    done = llmforge("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == job_json_schema()


@pytest.mark.parametrize("options", [[], ["--schema-only"]])
def test_validate_a_good_job(llmforge: Llmforge, options: list[str]) -> None:
    done = llmforge("validate", "job.yaml", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("job.yaml: a valid job\n  model          model-chatml\n")


def test_validate_a_bad_job(llmforge: Llmforge, tmp_path: Path) -> None:
    with (tmp_path / "job.yaml").open("a") as file:
        file.write("learning_rat: 1e-4\nnum_epochs: many\n")
    done = llmforge("validate", "job.yaml", "lora_config.rr=4")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "job.yaml:3: learning_rat: unknown key (did you mean learning_rate?)"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["job.yaml:4", "num_epochs"],
        ["command line", "lora_config.rr"],
    ]


def test_an_old_spelling_is_said_once(llmforge: Llmforge, tmp_path: Path) -> None:
    with (tmp_path / "job.yaml").open("a") as file:
        file.write("max_num_checkpoints: 2\n")
    done = llmforge("validate", "job.yaml")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("job.yaml:3: max_num_checkpoints: ")


def test_a_missing_job_file(llmforge: Llmforge) -> None:
    for command in ("validate", "train"):
        done = llmforge(command, "no.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "no.yaml: cannot be read: No such file or directory; check the path of the job file\n"


def test_schema_only_and_data_contradict(llmforge: Llmforge) -> None:
    done = llmforge("validate", "job.yaml", "--schema-only", "--data")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "found --schema-only and --data, allowed is one of them: --data reads the files\n"


def test_train_looks_for_files_before_it_starts_anything(llmforge: Llmforge, tmp_path: Path, ray_folder: str) -> None:
    (tmp_path / "train.jsonl").unlink()
    done = llmforge("train", "job.yaml", "deepspeed={config_path: zero.json}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"job.yaml:2: train_path: train.jsonl: no such file (looked for in {tmp_path})",
        "command line: deepspeed.config_path: zero.json: cannot be read: No such file or directory; "
        "the path counts from the working directory",
    ]
    assert not list(Path(ray_folder).iterdir())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["schema"], ["validate", "job.yaml"], ["generate", "runs/no"]],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_no_model_start_at_once(imports_of: Llmforge, arguments: list[str]) -> None:
    assert imports_of(HEAVY, *arguments).stdout.splitlines()[-1] == "imported: []"

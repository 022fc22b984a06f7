"""`llmforge validate --data`: the data stage without a model's weights and without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Llmforge

pytestmark = pytest.mark.slow


@pytest.fixture
def job(quickstart_material: Path, repository: Path, tmp_path: Path) -> str:
    """A job in `tmp_path` whose model has a tokenizer and `config.json` only; with one old spelling."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(quickstart_material / "model" / name, tmp_path / "model" / name)
    text = (repository / "job_configs" / "quickstart.yaml").read_text(encoding="utf-8")
    text = text.replace("build/quickstart/model", "model").replace("build/quickstart/runs", "runs")
    text = text.replace("build/quickstart/data", str(quickstart_material / "data"))
    (tmp_path / "job.yaml").write_text(f"{text}\nmax_num_checkpoints: 2\n", encoding="utf-8")
    return "job.yaml"


def test_what_the_data_come_to(
    llmforge: Llmforge, imports_of: Llmforge, job: str, quickstart_material: Path, tmp_path: Path
) -> None:
    arguments = ["validate", job, "--data", "accelerator=auto"]
    first = imports_of(("torch", "transformers", "deepspeed", "peft"), *arguments)
    assert first.returncode == 0, first.stderr
    *lines, imported = first.stdout.splitlines()
    assert imported == "imported: []"
    assert lines[0] == "job.yaml: a valid job"
    num_rows = sum(
        len((quickstart_material / "data" / name).read_text(encoding="utf-8").splitlines())
        for name in ("train.jsonl", "valid.jsonl")
    )
    [prepared] = (tmp_path / "runs" / "data").iterdir()
    stats = json.loads((prepared / "stats.json").read_text())
    assert stats["rows_in"] == stats["rows_used"] == num_rows
    assert f"rows: {num_rows} in, {num_rows} used, dropped: none" in lines
    an_epoch = -(-stats["train"]["samples"] // 4)
    assert lines[-1] == f"steps: {18 * an_epoch}, {an_epoch} an epoch, up to 4 sequences each"
    assert f"{num_rows:,} rows" in first.stderr
    assert "has no GPU" not in first.stderr  # nobody has looked
    assert first.stderr.count("max_num_checkpoints") == 1

    again = llmforge(*arguments)
    assert (again.returncode, again.stdout.splitlines()) == (0, lines)
    assert f"data: unchanged, using {prepared}" in again.stderr.splitlines()


def test_bad_rows_end_it(llmforge: Llmforge, job: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n{"messages"\n')
    done = llmforge("validate", job, "--data", "train_path=bad.jsonl", "valid_path=null", "eval_first=false")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-4:] == [
        "2 of 2 rows are invalid:",
        "  bad.jsonl:1: `messages` is an empty list; expected at least a user and an assistant message",
        "  bad.jsonl:2: not JSON: Input data was truncated",
        "mend them, or leave them out with dataset.on_invalid=drop",
    ]
    assert "Traceback" not in done.stderr

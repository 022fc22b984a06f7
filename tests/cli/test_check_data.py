"""`llmforge validate --data`: the data stage without a model's weights and without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Llmforge
from tests.metrics.pages import text_of

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
    first = imports_of(("torch", "transformers", "deepspeed", "peft", "matplotlib"), *arguments)
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
    train = stats["train"]
    share = 18 * train["tokens"]
    assert lines[-4].startswith("memory: whether ") and "give --device-memory-gib, or name the accelerator" in lines[-4]
    assert lines[-3:] == [
        f"steps: {18 * an_epoch:,}, {an_epoch:,} an epoch, up to 4 sequences each",
        f"tokens: {train['tokens']:,} an epoch, {share:,} in all steps",
        "time: not known; give --tokens-per-second, which is train/tokens_per_second in the metrics of a run, or name "
        "the accelerator in worker_resources, such as accelerator_type:A10G",
    ]
    assert f"  context        {stats['context_length']}" in lines
    assert f"  steps          {18 * an_epoch}" in lines
    assert f"{num_rows:,} rows" in first.stderr
    assert "has no GPU" not in first.stderr  # nobody has looked
    assert first.stderr.count("max_num_checkpoints") == 1

    again = llmforge(*arguments)
    assert (again.returncode, again.stdout.splitlines()) == (0, lines)
    assert f"data: unchanged, using {prepared}" in again.stderr.splitlines()
    assert "starting Ray" not in again.stderr

    job_with_price = [*arguments, "--tokens-per-second", "1000", "--price-per-device-hour", "2", "--html", "page.html"]
    priced = llmforge(*job_with_price, "--device-memory-gib", "8")
    assert priced.returncode == 0, priced.stderr
    memory, _, _, time, cost, page = priced.stdout.splitlines()[-6:]
    assert memory.endswith(" fit into 90% of 8 GiB, as given")
    assert time.startswith("time: about ")
    assert time.endswith(f": {share:,} tokens at 1,000 a second, of all devices, as given")
    hours = share / 1000 / 3600 * 2
    assert cost == f"cost: about {2 * hours:,.2f}: {hours:,.2f} device hours of 2 devices at 2 each"
    assert page == "page: page.html"
    assert cost.removeprefix("cost: ") in text_of((tmp_path / "page.html").read_text(encoding="utf-8"))

    named = llmforge(*arguments, 'worker_resources={"accelerator_type:L4": 0.01}')
    memory, _, _, time = named.stdout.splitlines()[-4:]
    assert memory.endswith(" fit into 90% of 24 GiB of L4")
    assert "an estimate: 2 x 40% of the 121 TFLOP/s of L4 / (" in time


def test_bad_rows_end_it(llmforge: Llmforge, job: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n{"messages"\n')
    without = ("valid_path=null", "eval_first=false", "evaluation=null")
    done = llmforge("validate", job, "--data", "train_path=bad.jsonl", *without)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-4:] == [
        "2 of 2 rows are invalid:",
        "  bad.jsonl:1: `messages` is an empty list; expected at least a user and an assistant message",
        "  bad.jsonl:2: not JSON: Input data was truncated",
        "mend them, or leave them out with dataset.on_invalid=drop",
    ]
    assert "Traceback" not in done.stderr


def test_a_page_that_cannot_be_written_is_refused_before_any_work(llmforge: Llmforge, job: str, tmp_path: Path) -> None:
    done = llmforge("validate", job, "--data", "--html", "none/page.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "--html: none/page.html: found no such folder to write it into, allowed is a file in a folder that is there"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--data", "--schema-only"),
            "found --schema-only and --data, allowed is one of them: --data reads the files",
        ),
        (("--html", "page.html"), "found --html without --data; add --data: only the data can say it"),
        (
            ("--price-per-device-hour", "1"),
            "found --price-per-device-hour without --data; add --data: only the data can say it",
        ),
    ],
    ids=["schema", "page", "price"],
)
def test_flags_that_mean_nothing_together(
    llmforge: Llmforge, job: str, arguments: tuple[str, ...], message: str
) -> None:
    done = llmforge("validate", job, *arguments)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (2, "", message)

"""The benchmarks of the step in their smallest form: that they run, and that all programs train on the same."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest


def run(repository: Path, *command: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / command[0]), *command[1:]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=repository,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.soak
def test_the_step_beside_other_programs(repository: Path, material: Path, tmp_path: Path) -> None:
    run(
        repository, "train.py", "--repetitions", "1", "--num-steps", "3", "--layers", "1", "--hidden", "32",
        "--context-length", "256", "--sequences-per-step", "2", "--material", str(material),
        "--programs", "raw", "1", "--json", str(tmp_path / "train.json"),
    )  # fmt: skip
    results = {name: values[0] for name, values in json.loads((tmp_path / "train.json").read_text())["results"].items()}
    assert list(results) == ["raw", "1"]
    assert len({(result["num_tokens"], result["num_trained_tokens"]) for result in results.values()}) == 1
    for result in results.values():
        assert result["last_loss"] == pytest.approx(results["raw"]["last_loss"], rel=1e-5)
        assert 0 < result["import_bytes"] < result["peak_bytes"]


@pytest.mark.slow
def test_the_step_on_a_gpu_in_its_tiny_form(repository: Path, tmp_path: Path) -> None:
    table = run(
        repository, "gpu.py", "--tiny", "--num-steps", "3", "--programs", "llmforge", "strong",
        "--only", "1b-lora-2048", "--json", str(tmp_path / "gpu.json"),
    )  # fmt: skip
    ours, theirs = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [ours["failure"], theirs["failure"]] == ["", ""], table
    assert ours["result"]["num_token_pairs"] == theirs["result"]["num_token_pairs"]
    assert ours["result"]["last_loss"] == pytest.approx(theirs["result"]["last_loss"], rel=1e-3)


def test_the_ratio_is_of_pairs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    script = runpy.run_path(str(repository / "benchmarks" / "train.py"))

    def results(*seconds: float) -> list[object]:
        return [script["Result"](one, 200, 100, 0, last_loss=1.0, peak_bytes=3) for one in seconds]

    assert script["paired_ratio"](results(1, 2, 10), results(2, 4, 10)) == 2
    rows = script["table"]({"raw": results(2, 4), "1": results(1, 2)})
    assert rows[2].startswith("| raw loop: all logits, block mask | 75 | 38 | 2.00 |")


def test_warm_up_does_not_count(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    plan = runpy.run_path(str(repository / "benchmarks" / "train_plan.py"))
    log = plan["StepLog"]()
    for number, ending in enumerate([10.0, 15.0, 16.0, 18.0]):
        log.add_batch([[plan["Document"]([1] * (number + 1), [-100] + [1] * number)]])
        log.losses.append(float(number))
        log.seconds.append(ending)
    result = plan["Result"].of(log, peak_bytes=5, import_bytes=2)
    assert (result.seconds, result.num_tokens, result.num_trained_tokens, result.num_token_pairs) == (3, 7, 5, 25)
    assert result.trained_tokens_per_second == pytest.approx(5 / 3)


@pytest.mark.slow
def test_answers_beside_transformers(repository: Path, material: Path) -> None:
    printed = run(
        repository, "generate.py", str(material / "models" / "stories260K-hf"),
        str(material / "data" / "chat" / "gsm8k-train.jsonl"), "--num-prompts", "6", "--batch-size", "4",
        "--max-tokens", "8", "--repetitions", "1", "--threads", "1",
    )  # fmt: skip
    assert printed.count("| 6 the same |") == 4

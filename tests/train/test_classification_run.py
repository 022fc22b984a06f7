"""A whole run that learns to tell real questions apart: Ray Data, Ray Train workers, DeepSpeed, the report, answers."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import llmforge
from llmforge.cli.main import app
from llmforge.config.classifier import Classifier
from llmforge.config.job import load_job
from llmforge.metrics.labels import LABEL_EVALUATION_FILE, LabelEvaluation
from llmforge.metrics.loggers import read_metrics
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.train.run import RunRequest, RunResult, run_training

pytestmark = pytest.mark.slow
WAYS = ("chat template", "server", "prepared data")
MOST_CHARACTERS = 300
"""Of a question, so that no row is too long for the model."""


@dataclass(frozen=True)
class Trained:
    """A run that has ended."""

    folder: Path
    """Where its data and its cache lie."""
    result: RunResult
    shown: str
    """In the terminal."""


def write_questions(material: Path, folder: Path, labels: tuple[str, str] = ("M", "O")) -> None:
    """As the job file says; every fourth question is held out, wherever the data lie."""
    splits: dict[str, list[str]] = {"train": [], "valid": []}
    for name, label in zip(("gsm8k-train", "dolly15k"), labels, strict=True):
        with (material / "data" / "chat" / f"{name}.jsonl").open() as lines:
            questions = (json.loads(line)["messages"][0] for line in lines)
            short = (question for question in questions if len(question["content"]) < MOST_CHARACTERS)
            for number, question in zip(range(250), short, strict=False):
                row = json.dumps({"messages": [question, {"role": "assistant", "content": label}]})
                splits["train" if number % 4 else "valid"].append(f"{row}\n")
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(rows))


@pytest.fixture(scope="module")
def trained(
    shared_ray: None, repository: Path, material: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("questions")
    write_questions(material, folder)
    job = load_job(
        repository / "job_configs" / "stories260k-questions-classification.yaml",
        [
            f"model_id={material / 'models' / 'stories260K-hf'}",
            f"train_path={folder / 'train.jsonl'}",
            f"valid_path={folder / 'valid.jsonl'}",
            "dataset.valid_fraction=null",
            f"output_dir={folder / 'runs'}",
            "run_name=questions",
            "max_steps=16",
            "num_devices=2",
            "train_batch_size_per_device=4",
            "checkpoint_and_evaluation_frequency.frequency=8",
            "num_checkpoints_to_keep=2",
            "eval_first=true",
        ],
    )
    shown = io.StringIO()
    with ProgressDisplay(Console(file=shown)) as display, pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLMFORGE_CACHE", str(folder / "cache"))
        result = run_training(RunRequest(job, "submitted: text\n", folder / "cache"), display, PhaseTimer())
        yield Trained(folder, result, shown.getvalue())


def test_a_real_model_learns_to_tell_real_questions_apart(trained: Trained) -> None:
    run = Path(trained.result.run_uri)
    records = read_metrics(run / "metrics.jsonl")
    praucs = [record["eval/prauc"] for record in records if "eval/prauc" in record]
    assert len(praucs) == 3 and praucs[-1] > 0.9 > praucs[0]
    assert any(record.get("train/accuracy", 0.0) > 0.8 for record in records)
    assert trained.result.best.metadata["eval_score"] == max(praucs[1:])
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    for folder in checkpoints:
        classifier = Classifier.model_validate_json((folder / "classifier.json").read_text())
        found = LabelEvaluation.model_validate_json((folder / LABEL_EVALUATION_FILE).read_text())
        assert found.classifier == classifier
        assert (classifier.labels, classifier.positive_label) == (("O", "M"), "M")
    assert "train: labels: " in trained.shown and "PR AUC" in trained.shown
    page = (run / "report.html").read_text()
    assert "Precision over recall" in page and "decided: M" in page


def test_it_says_what_was_measured_and_is_asked_as_it_was_trained(trained: Trained) -> None:
    run = trained.result.run_uri
    best = Path(run, "checkpoints", trained.result.best.name)
    measured = LabelEvaluation.model_validate_json((best / LABEL_EVALUATION_FILE).read_text())
    labels = measured.classifier.labels

    with (trained.folder / "valid.jsonl").open() as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    verified = CliRunner().invoke(app, ["verify", run, "--json", "--num-prompts", str(len(rows))])
    assert verified.exit_code == 0, verified.exception
    tallies = json.loads(verified.stdout)["tallies"]
    assert {tally["way"]: tally["num_equal"] for tally in tallies} == dict.fromkeys(WAYS, len(rows))
    model = llmforge.load(run)
    assert model.classifier == measured.classifier
    found = model.classify_batch([question for *question, _ in rows])
    pairs = Counter((answer["content"], one.label) for (*_, answer), one in zip(rows, found, strict=True))
    assert measured.confusion == tuple(tuple(pairs[true, said] for said in labels) for true in labels)
    assert measured.accuracy > 0.6


def test_labels_that_are_new_tokens(
    shared_ray: None, repository: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained as rows of an adapter, read by whoever loads the run, and merged into a whole model."""
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    write_questions(material, tmp_path, ("[[1]]", "[[2]]"))
    job = load_job(
        repository / "job_configs" / "stories260k-questions-classification.yaml",
        [
            f"model_id={material / 'models' / 'stories260K-hf'}",
            f"train_path={tmp_path / 'train.jsonl'}",
            f"valid_path={tmp_path / 'valid.jsonl'}",
            "dataset.valid_fraction=null",
            "classifier_config.label_tokens=['[[2]]', '[[1]]']",
            "classifier_config.positive_label='[[1]]'",
            "generation_config.prompt_format.assistant='Kind:{instruction}</s>'",
            f"output_dir={tmp_path / 'runs'}",
            "max_steps=12",
            "checkpoint_and_evaluation_frequency.frequency=12",
        ],
    )
    with ProgressDisplay(Console(file=io.StringIO())) as display:
        run = run_training(RunRequest(job, "submitted: text\n", tmp_path / "cache"), display, PhaseTimer()).run_uri
    exported = CliRunner().invoke(app, ["export", run, str(tmp_path / "merged")])
    assert exported.exit_code == 0, exported.exception
    rows = [json.loads(line)["messages"] for line in (tmp_path / "valid.jsonl").read_text().splitlines()]
    questions = [question for *question, _ in rows]
    model, merged = llmforge.load(run), llmforge.load(str(tmp_path / "merged"))
    assert model.classifier is not None and model.classifier.token_ids == (512, 513)
    found, again = model.classify_batch(questions), merged.classify_batch(questions)
    losses = [record["train/loss"] for record in read_metrics(Path(run) / "metrics.jsonl") if "train/loss" in record]
    assert losses[-1] < losses[0] / 2
    for one, other in zip(found, again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-3)

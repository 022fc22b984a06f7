"""Whole runs that learn from real pairs: Ray Data, the reference model, Ray Train workers, DeepSpeed."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from llmforge.config.job import load_job
from llmforge.metrics.loggers import read_metrics
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.train.run import RunRequest, RunResult, run_training

pytestmark = pytest.mark.slow

ASKED = "asking the reference model"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    result: RunResult
    shown: str

    def values(self, key: str) -> list[float]:
        """What was recorded under a key, in the order of the steps."""
        records = read_metrics(Path(self.result.run_uri) / "metrics.jsonl")
        found = {record["step"]: record[key] for record in records if key in record}
        return [found[step] for step in sorted(found)]


class Runs:
    """Runs of the shipped job below one folder, on its pairs or other rows."""

    def __init__(self, repository: Path, material: Path, folder: Path) -> None:
        self.folder = folder
        self._path = repository / "job_configs" / "stories260k-oasst1-dpo.yaml"
        self._overrides = [
            f"model_id={material / 'models' / 'stories260K-hf'}",
            f"train_path={material / 'data' / 'preference' / 'oasst1.jsonl'}",
            f"output_dir={folder / 'runs'}",
            "lr_scheduler_type=constant",  # so that runs of another length take the same steps
            "num_checkpoints_to_keep=9",
        ]

    def run(self, name: str, *overrides: str) -> Run:
        job = load_job(self._path, [*self._overrides, f"run_name={name}", *overrides])
        console = Console(file=io.StringIO())
        with ProgressDisplay(console) as display:
            request = RunRequest(job, "submitted: text\n", self.folder / "cache")
            result = run_training(request, display, PhaseTimer())
        assert isinstance(console.file, io.StringIO)
        return Run(result, console.file.getvalue())


@pytest.fixture(scope="module")
def runs(shared_ray: None, repository: Path, material: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(repository, material, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def shipped(runs: Runs) -> Run:
    """The shipped job, shortened: the reference model is the base, with its adapter off, in every step."""
    return runs.run("shipped", "max_steps=16", "checkpoint_and_evaluation_frequency.frequency=4")


def test_a_real_model_learns_real_preferences(shipped: Run) -> None:
    """Of pairs that it has not seen, clearly more than half are told apart, and the loss is below log 2."""
    losses, accuracies = shipped.values("eval/loss"), shipped.values("eval/reward_accuracy")
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert [shipped.values(f"eval/{name}")[0] for name in ("reward_accuracy", "reward_margin", "kl")] == [0, 0, 0]
    assert min(losses) < 0.66
    assert max(accuracies) >= 0.65
    assert shipped.values("eval/reward_margin")[-1] > 0.1
    best = shipped.result.best
    assert best.metadata["eval_score"] == max(accuracies[1:])
    assert best.eval_loss in losses


def test_what_is_shown_of_pairs(shipped: Run) -> None:
    page = (Path(shipped.result.run_uri) / "report.html").read_text()
    assert "<th>Accuracy</th>" in page and "<th>Perplexity</th>" not in page
    assert "chosen by reward accuracy" in page
    assert f"<td>{shipped.result.best.step} (best)</td>" in page
    assert "Reward accuracy" in page
    assert ", rejected" in page
    found = re.search(r"train: (\d+) pairs in (\d+) sequences", shipped.shown)
    assert found is not None and int(found[1]) > int(found[2])  # some share one
    assert ASKED not in shipped.shown


def test_a_real_model_learns_from_rated_answers(runs: Runs, material: Path) -> None:
    """Real labels: what they call good gets likelier than what they call bad.

    The reference model is asked beforehand, by workers of its own who leave its numbers beside the data: before the
    first step they are those of the model that is trained, so that all that is measured against them is 0.
    """
    rated = runs.run(
        "rated",
        f"train_path={material / 'data' / 'llama_factory' / 'kto_en_demo.json'}",
        "preference_tuning_config.loss=kto",
        "preference_tuning_config.logprob_processor_scaling_config.batch_size=4",
        "max_steps=10",
        "checkpoint_and_evaluation_frequency.frequency=5",
    )
    assert ASKED in rated.shown
    assert len(list((runs.folder / "runs" / "data").glob("*-reference-*/manifest.json"))) == 1
    found = re.search(r"train: (\d+) answers \((\d+) desirable, (\d+) undesirable\)", rated.shown)
    assert found is not None and int(found[1]) == int(found[2]) + int(found[3])
    margins = rated.values("eval/reward_margin")
    assert rated.values("eval/loss")[0] == pytest.approx(0.5, abs=1e-4)
    assert [margins[0], rated.values("eval/kl")[0]] == pytest.approx([0, 0], abs=1e-5)
    assert margins[0] < margins[1] < margins[2]
    assert rated.result.best.metadata["eval_score"] == max(rated.values("eval/reward_accuracy")[1:])

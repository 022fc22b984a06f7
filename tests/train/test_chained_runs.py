"""Supervised fine-tuning, then preferences, by two jobs of which the second names the run of the first."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llmforge.checkpoint.lineage import Ancestor, lineage_of
from llmforge.config.job_yaml import job_from_yaml
from llmforge.errors import CheckpointError
from llmforge.export.folder import ExportRequest, export_run
from llmforge.inference.find import find_trained_model
from llmforge.inference.load import load_trained_model
from llmforge.metrics.loggers import read_metrics
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.train.run import RunRequest, RunResult, run_training
from tests.ray_fixtures import PROMPT_FORMAT, MakeJob

pytestmark = pytest.mark.slow

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def pairs(tmp_path: Path, real_rows: list[str]) -> Path:
    """Real questions with their answers; of each the answer to another question is the rejected one."""
    path = tmp_path / "pairs.jsonl"
    messages = [json.loads(row)["messages"] for row in real_rows[:24]]
    rows = [
        {"prompt": one[:-1], "chosen": one[-1]["content"][:200], "rejected": other[-1]["content"][:200]}
        for one, other in pairwise(messages)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_preferences_behind_supervised_fine_tuning(
    shared_ray: None, make_job: MakeJob, small_model: Path, real_rows: list[str], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f"{row}\n" for row in real_rows[:20]))
    common = {"model_id": str(small_model), "lora_config": LORA, "lr_scheduler_type": "constant"}

    def run(resume: bool = False, **keys: object) -> RunResult:
        display = ProgressDisplay(Console(file=io.StringIO()))
        request = RunRequest(make_job(**common, **keys), "", tmp_path / "cache", resume=resume)
        return run_training(request, display, PhaseTimer())

    def prefer(max_steps: int, resume: bool = False) -> RunResult:
        return run(
            resume,
            run_name="dpo",
            train_path=str(pairs),
            max_steps=max_steps,
            initial_adapter_model_ckpt_path="run:sft",
            generation_config={},  # the format is that of the run
            preference_tuning_config={"loss": "dpo"},
            dataset={"valid_fraction": 0.2},
            eval_first=True,
        )

    with pytest.raises(CheckpointError, match=r"run:sft: found no such run in .*; runs there: none"):
        prefer(2)
    sft = run(run_name="sft", max_steps=3, learning_rate=1e-2)
    dpo = prefer(2)

    start = f"{sft.run_uri}/checkpoints/{sft.best.name}"
    manifest = Path(start, "manifest.json").read_bytes()
    sft_ancestor = Ancestor(
        run="sft", checkpoint=sft.best.name, step=3, uri=start, manifest_sha256=hashlib.sha256(manifest).hexdigest()
    )
    assert lineage_of(dpo.best) == (sft_ancestor,)
    resolved = Path(dpo.run_uri, "resolved_job.yaml")
    job = job_from_yaml(resolved.read_text())
    assert job.initial_adapter_model_ckpt_path == start
    assert job.prompt_format.model_dump(exclude_defaults=True) == PROMPT_FORMAT
    assert job.preference_tuning_config is not None and job.preference_tuning_config.reference == "precomputed"
    first = next(one for one in read_metrics(Path(dpo.run_uri, "metrics.jsonl")) if "eval/loss" in one)
    # The reference model is the fine-tuned one, and the training starts from it.
    assert first["eval/loss"] == pytest.approx(0.6931, abs=1e-4)
    weights = [
        load_trained_model(find_trained_model(one.run_uri, "latest", tmp_path / "cache")).model for one in (sft, dpo)
    ]
    change = _largest_change(*weights)
    assert 0 < change < 1e-3 < _size(weights[0])
    assert "trained in: sft (step 3) -&gt; dpo" in Path(dpo.run_uri, "report.html").read_text()

    before = resolved.read_text().split("\n\n")[0]
    shutil.rmtree(sft.run_uri)
    resumed = prefer(3, resume=True)
    assert resumed.latest.step == 3
    assert lineage_of(resumed.latest) == (sft_ancestor,)
    assert resolved.read_text().split("\n\n")[0] == before
    export_run(ExportRequest(resumed.run_uri, str(tmp_path / "out"), "latest"), tmp_path / "cache")
    assert "- trained in: sft (step 3) -> dpo (step 3)\n" in (tmp_path / "out" / "README.md").read_text()


def _adapter(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_B" in name}


def _largest_change(before: torch.nn.Module, after: torch.nn.Module) -> float:
    there = _adapter(after)
    return max(float((tensor - there[name]).abs().max()) for name, tensor in _adapter(before).items())


def _size(model: torch.nn.Module) -> float:
    return max(float(tensor.abs().max()) for tensor in _adapter(model).values())

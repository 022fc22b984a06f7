"""Runs that were really trained, by two workers with ZeRO 3, exported without them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

import llmforge
from llmforge.dataset.shards import SampleReader
from llmforge.export.folder import ExportRequest, export_run
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.train.batches import collate
from llmforge.train.losses import NextTokenLoss
from llmforge.train.run import RunRequest, run_training
from tests.ray_fixtures import MakeJob

pytestmark = pytest.mark.slow
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 1e-2, "lora_config": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}},
    "pissa": {
        "learning_rate": 1e-3,
        "lora_config": {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"},
    },
    "full": {"learning_rate": 1e-3},
}


def validation_loss(exported: Path, output: Path) -> float:
    """Of the exported weights alone, over the prepared dataset."""
    (shard,) = (output / "data").glob("*/valid-00000.arrow")
    reader = SampleReader([shard])
    with torch.no_grad():
        loss = NextTokenLoss(AutoModelForCausalLM.from_pretrained(exported)).eval()
        total = sum(float(loss(collate([reader[index]]))) for index in range(len(reader)))
    return total / float(reader.loss_weights.sum())


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_run(
    method: str, shared_ray: None, make_job: MakeJob, small_model: Path, real_rows: list[str], tmp_path: Path
) -> None:
    """What was exported has the loss that was measured in training, and was shown to read the very ids trained on."""
    (tmp_path / "train.jsonl").write_text("".join(f"{row}\n" for row in real_rows[:60]))
    job = make_job(
        model_id=str(small_model),
        run_name="mine",
        num_devices=2,
        max_steps=4,
        dataset={"valid_fraction": 0.2},
        deepspeed={"zero_optimization": {"stage": 3}},
        **METHODS[method],
    )
    display = ProgressDisplay(Console(file=io.StringIO()))
    trained = run_training(RunRequest(job, "", tmp_path / "cache", resume=False), display, PhaseTimer())
    result = export_run(ExportRequest(trained.run_uri, str(tmp_path / "out"), targets=("vllm",)), tmp_path / "cache")
    assert validation_loss(tmp_path / "out", tmp_path / "runs") == pytest.approx(trained.best.eval_loss, rel=1e-5)
    assert result.weights is not None
    assert result.weights.largest_error < 1e-5
    tallies = {tally.way: tally for tally in result.verification.tallies}
    assert {way: tally.num_different for way, tally in tallies.items()} == dict.fromkeys(tallies, 0)
    assert tallies["server"].num_equal == tallies["chat template"].num_equal == 60
    assert tallies["prepared data"].num_equal > 50
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- training loss at step 4: " in card
    assert f"- validation loss at step 4: {trained.best.eval_loss:.6g}" in card
    assert "- rows: 60 in, " in card
    ask = [{"role": "user", "content": "Tom has 3 apples. How many?"}]
    answers = [
        llmforge.load(place, cache_folder=tmp_path / "cache").generate(ask, max_tokens=12)
        for place in (trained.run_uri, tmp_path / "out")
    ]
    assert answers[0] == answers[1] != ""

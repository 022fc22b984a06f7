"""The same code on a GPU: bf16, NCCL, the device's memory. Run with `pytest -m gpu` where there is one."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmforge.metrics.loggers import read_metrics
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.train.run import RunRequest, run_training
from tests.ray_fixtures import MakeJob


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("lora", [None, {"r": 8, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_a_run_on_a_gpu(
    stage: int,
    lora: dict[str, object] | None,
    shared_ray: None,
    make_job: MakeJob,
    small_model: Path,
    real_rows: list[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(real_rows) + "\n")
    job = make_job(
        model_id=str(small_model),
        run_name="gpu",
        accelerator="gpu",
        precision="bf16",
        max_steps=10,
        learning_rate=1e-2 if lora else 2e-3,
        lora_config=lora,
        dataset={"valid_fraction": 0.1},
        deepspeed={"zero_optimization": {"stage": stage}},
        eval_first=True,
    )
    display = ProgressDisplay(Console(file=io.StringIO()))
    result = run_training(RunRequest(job, "", tmp_path / "cache"), display, PhaseTimer())
    records = read_metrics(Path(result.run_uri) / "metrics.jsonl")
    assert result.best.eval_loss is not None
    assert result.best.eval_loss < records[0]["eval/loss"] - 1
    assert any(record.get("train/peak_memory_bytes", 0) > 0 for record in records)

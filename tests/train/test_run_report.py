"""The report of a run: composed of what the run left behind, in the run's folder."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from html import unescape
from pathlib import Path

import pytest
from pydantic import JsonValue

from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.dataset.facts import data_facts
from llmforge.dataset.preview import Piece
from llmforge.dataset.stats import CheckTotals, DatasetStats, HistogramBin, LengthSummary, SplitStats
from llmforge.storage.base import open_storage, read_bytes
from llmforge.train.run_report import REPORT_FILE, store_report, use_commands
from tests.metrics.pages import text_of

JOB_TEXT = "model_id: meta-llama/Meta-Llama-3-8B\ntrain_path: a<b>.jsonl\n"
SPLIT = SplitStats(
    rows=321,
    examples=321,
    samples=54,
    tokens=9876,
    trained_tokens=4321,
    packing_efficiency=0.987,
    longest_sample=500,
    most_trained=300,
)
STATS = DatasetStats(
    rows_in=333,
    rows_used=321,
    dropped={"longer than context_length": 12},
    checks=CheckTotals(rows=333, prompts=400, straddled=2, ends_with_terminator=333),
    context_length=512,
    lengths=LengthSummary(shortest=3, median=41, p95=222, longest=511),
    length_histogram=(
        HistogramBin(shortest=1, longest=256, count=300),
        HistogramBin(shortest=257, longest=512, count=33),
    ),
    train=SPLIT,
)
RECORDS = [
    {"step": 0, "epoch": 0.0, "eval/loss": 3.25},
    *({"step": step, "epoch": step / 54, "train/loss": 3 / step, "train/lr": 1e-4} for step in range(1, 21)),
    {"step": 20, "epoch": 20 / 54, "eval/loss": 1.0625},
]


PREVIEW = {
    "rows.jsonl:7": (
        Piece("<s>", trained=False, is_control=True),
        Piece("learn <this>", trained=True, is_control=False),
    )
}


ANCESTOR: JsonValue = {
    "run": "sft",
    "checkpoint": "step-00000120-a",
    "step": 120,
    "uri": "s3://b/sft",
    "manifest_sha256": "",
}


def checkpoint(eval_loss: float | None) -> CheckpointInfo:
    return CheckpointInfo(
        name="step-00000020-ab12",
        step=20,
        world_size=2,
        committed_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
        metadata={"eval_loss": eval_loss, "lineage": [ANCESTOR]},
        files=(),
    )


@pytest.mark.parametrize("eval_loss", [1.0625, None])
def test_the_report_of_a_run(tmp_path: Path, eval_loss: float | None) -> None:
    storage = open_storage(str(tmp_path / "my runs" / "llama-1"))
    job = JobConfig.model_validate(
        {
            "model_id": "meta-llama/Meta-Llama-3-8B",
            "train_path": "a.jsonl",
            "run_name": "llama-1",
            "num_devices": 2,
            "accelerator": "cpu",
            "precision": "fp32",
            "lora_config": {"r": 8},
        }
    )
    records = RECORDS if eval_loss is not None else RECORDS[1:-1]
    facts = data_facts(STATS, "my runs/data/ab12")
    store_report(storage, job, JOB_TEXT, facts, records, checkpoint(eval_loss), PREVIEW)
    assert [file.key for file in storage.list()] == [REPORT_FILE]
    page = read_bytes(storage, REPORT_FILE).decode()
    text = unescape(page)
    assert "meta-llama/Meta-Llama-3-8B, lora, 2 x cpu, fp32; trained in: sft (step 120) -> llama-1" in text
    assert "rows.jsonl:7" in text and "learn <this>" in text and "learn <this>" not in page
    assert JOB_TEXT in text and "<b>.jsonl" not in page
    assert f"{storage.root_uri}/checkpoints/step-00000020-ab12" in text
    assert all(command in text for command in use_commands(storage.root_uri).values())
    for expected in (
        "What became of the rows Rows Share in 333 100 % used 321 96.4 %",
        "dropped: longer than context_length 12 3.604 %",
        "Every row that is not used, with its reason: my runs/data/ab12/dropped.jsonl",
        "training 321 54 9,876 44 % 98.7 %",
        "checks: 400 prompts in 333 rows are the begin of what is trained",
        "Median 41, 95 % up to 222, longest 511; context_length is 512.",
        "257 to 512 33",
    ):
        assert expected in text_of(page)
    assert ("1.0625" in text) == (eval_loss is not None)


@pytest.mark.parametrize("uri", ["./runs/llama-1", "s3://bucket/runs/llama-1", "/home/me/my runs/it's $HOME"])
def test_commands_are_what_a_shell_understands(uri: str) -> None:
    chat, generate = (shlex.split(command) for command in use_commands(uri).values())
    assert chat == ["llmforge", "chat", uri]
    assert generate[:3] == ["llmforge", "generate", uri]

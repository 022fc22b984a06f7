"""A whole small run whose data and output lie on a real S3 server, and what can be done with the result."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from llmforge.answers.sampling import Sampling
from llmforge.checkpoint.store import CheckpointStore
from llmforge.cli.generate import GenerateOptions, run_generate
from llmforge.errors import DataError
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import open_storage, read_bytes
from llmforge.train.run import RunRequest, RunResult, run_training
from tests.ray_fixtures import MakeJob
from tests.s3_server import SECRET_KEY, S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow

NUM_STEPS = 4


@dataclass(frozen=True)
class FinishedRun:
    """A run on S3 and what was shown of it."""

    result: RunResult
    shown: str
    store: CheckpointStore


@pytest.fixture
def run(
    make_job: MakeJob,
    small_model: Path,
    real_rows: list[str],
    s3_on_nodes: S3Server,
    s3_client: S3Client,
    s3_bucket: str,
    tmp_path: Path,
) -> FinishedRun:
    """LoRA on two workers; one row of the data is no JSON and is left out."""
    data = "\n".join([*real_rows[:60], "cut in ha"])
    s3_client.put_object(Bucket=s3_bucket, Key="data/train.jsonl", Body=data.encode())
    for file in small_model.glob("*.[js]*"):
        s3_client.upload_file(str(file), s3_bucket, f"models/base/{file.name}")
    job = make_job(
        model_id=str(small_model),
        initial_base_model_ckpt_path=f"s3://{s3_bucket}/models/base",
        train_path=f"s3://{s3_bucket}/data/train.jsonl",
        output_dir=f"s3://{s3_bucket}/runs",
        dataset={"valid_fraction": 0.2, "on_invalid": "drop"},
        lora_config={"r": 4},
        num_devices=2,
        max_steps=NUM_STEPS,
        train_batch_size_per_device=2,
        learning_rate=0.01,
        num_warmup_steps=0,
        eval_first=True,
        checkpoint_and_evaluation_frequency={"unit": "steps", "frequency": 2},
        num_checkpoints_to_keep=2,
    )
    console = io.StringIO()
    with ProgressDisplay(Console(file=console, width=200)) as display:
        result = run_training(RunRequest(job, "submitted", tmp_path / "cache"), display, PhaseTimer())
    return FinishedRun(result, console.getvalue(), CheckpointStore(open_storage(result.run_uri)))


def test_a_run_on_s3(
    run: FinishedRun,
    s3_bucket: str,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run, looked at from all sides: it takes most of a minute."""
    _check_checkpoints(run)
    _check_files(run, s3_bucket)
    _check_adapter(run, small_model, tmp_path / "adapter")
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache of another machine"))
    _check_answers(run, tmp_path / "prompts.jsonl", capsys)


def _check_checkpoints(run: FinishedRun) -> None:
    found = run.store.list()
    assert [info.step for info in found] == [2, NUM_STEPS]
    assert run.result.latest == found[-1]
    best = min(found, key=lambda info: info.eval_loss or float("inf"))
    assert run.result.best == best
    labels = {label: read_bytes(run.store.storage, label).decode().strip() for label in ("best", "latest")}
    assert labels == {"best": best.name, "latest": found[-1].name}
    for info in found:
        assert info.world_size == 2
        paths = {record.path for record in info.files}
        assert paths >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "resolved_job.yaml"}


def _check_files(run: FinishedRun, bucket: str) -> None:
    storage = run.store.storage
    assert read_bytes(storage, "job.yaml") == b"submitted"
    assert f"output_dir: s3://{bucket}/runs" in read_bytes(storage, "resolved_job.yaml").decode()
    records = [json.loads(line) for line in read_bytes(storage, "metrics.jsonl").splitlines()]
    assert [record["step"] for record in records if "train/loss" in record] == [1, 2, 3, 4]
    evaluations = {record["step"]: record["eval/loss"] for record in records if "eval/loss" in record}
    assert list(evaluations) == [0, 2, 4]
    assert evaluations[4] < evaluations[0]
    assert run.result.best.eval_loss == min(evaluations[step] for step in (2, 4))
    report = read_bytes(storage, "report.html").decode()
    assert run.result.best.name in report
    assert "http" not in report.replace("http://www.w3.org/", "")
    assert "61 in" in run.shown
    assert "1 invalid" in run.shown
    assert SECRET_KEY not in report + run.shown + read_bytes(storage, "resolved_job.yaml").decode()


def _check_adapter(run: FinishedRun, model: Path, folder: Path) -> None:
    """It loads by PEFT alone, and makes the base model another one."""
    run.store.fetch(run.result.best, folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        before = base(ids).logits.clone()
        adapted = PeftModel.from_pretrained(base, folder)
        after = adapted(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert adapted.peft_config["default"].r == 4


def _check_answers(run: FinishedRun, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of a file is answered, or none is."""
    good = [[{"role": "user", "content": f"What is {number} + 2?"}] for number in (2, 3, 2)]
    bad = [
        [{"role": "robot", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    ]

    def answer(prompts: list[list[dict[str, str]]]) -> None:
        file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in prompts))
        options = GenerateOptions(
            run.result.run_uri, "best", prompt=None, messages=str(file), output=None, on_invalid="fail",
            batch_size=None, num_workers=None,
        )  # fmt: skip
        run_generate(options, Sampling(max_tokens=8, temperature=0))

    capsys.readouterr()
    with pytest.raises(DataError) as caught:
        answer([good[0], *bad])
    assert str(caught.value).splitlines() == [
        f"{file}:2: message 1 has role 'robot'; allowed are system, user, assistant",
        f"{file}:3: the last message is the assistant's; a prompt ends with the user's message",
    ]
    assert capsys.readouterr().out == ""
    answer(good)
    rows = [json.loads(line)["messages"] for line in capsys.readouterr().out.splitlines()]
    assert [messages[:-1] for messages in rows] == good
    answers = [messages[-1] for messages in rows]
    assert {message["role"] for message in answers} == {"assistant"}
    assert answers[0]["content"] == answers[2]["content"] != ""

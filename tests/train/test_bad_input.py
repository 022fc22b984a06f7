"""What is wrong with a job is said in full before any worker starts; what only a worker finds ends the run at once."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray
from rich.console import Console

from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.job import load_job
from llmforge.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    LlmforgeError,
    ModelError,
    StorageError,
)
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import open_storage
from llmforge.train.run import RunRequest, RunResult, run_training
from tests.adapters import write_misfit
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

GOOD_ROW = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}'
WORKER_ACTOR = "RayTrainWorker"

Run = Callable[..., RunResult]
Refused = Callable[..., str]


@pytest.fixture
def train(quickstart_material: Path, repository: Path, tmp_path: Path) -> Run:
    """`train("key=value", ...)`: run the quickstart's job with overrides, on one row of data."""
    data = tmp_path / "train.jsonl"
    data.write_text(f"{GOOD_ROW}\n")
    base = [
        f"model_id={quickstart_material / 'model'}",
        f"train_path={data}",
        "valid_path=null",
        "evaluation=null",
        "eval_first=false",
        f"output_dir={tmp_path / 'runs'}",
        "run_name=test",
        "num_devices=1",
        "max_steps=1",
    ]

    def run(*overrides: str, resume: bool = False) -> RunResult:
        job = load_job(repository / "job_configs" / "quickstart.yaml", [*base, *overrides])
        request = RunRequest(job, "submitted", tmp_path / "cache", resume=resume)
        with ProgressDisplay(Console(file=io.StringIO())) as display:
            return run_training(request, display, PhaseTimer())

    return run


@pytest.fixture
def refused(train: Run, tmp_path: Path) -> Refused:
    """`refused(DataError, "key=value", ...)`: the message of a run that must end before its folder is made."""

    def message(kind: type[LlmforgeError], *overrides: str, resume: bool = False) -> str:
        before = _num_worker_processes()
        with pytest.raises(kind) as caught:
            train(*overrides, resume=resume)
        assert not (tmp_path / "runs" / "test" / "job.yaml").exists()
        assert _num_worker_processes() == before
        return str(caught.value)

    return message


def _num_worker_processes() -> int:
    """Training workers that this Ray has started so far, dead ones included."""
    return sum(WORKER_ACTOR in actor["ActorClassName"] for actor in ray._private.state.actors().values())


def test_a_missing_data_file(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "no.jsonl"
    assert refused(StorageError, f"train_path={path}") == f"{path}: no such file. Check the path."
    assert refused(StorageError, f"valid_path={path}") == f"{path}: no such file. Check the path."


def test_a_file_without_rows(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n\n")
    assert refused(DataError) == f"{path}: no rows; expected records, such as one JSON object per line"


def test_bad_rows_are_all_listed(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    wrong_roles = '{"messages": [{"role": "assistant", "content": "4"}, {"role": "user", "content": "2 + 2?"}]}'
    path.write_text(f'{GOOD_ROW}\n{{"messages": [\n{wrong_roles}\n')
    assert refused(DataError).splitlines() == [
        "2 of 3 rows are invalid:",
        f"  {path}:2: not JSON: Input data was truncated",
        f"  {path}:3: message 1 has role assistant, expected user: "
        "after the system message, user and assistant take turns and the user begins",
        "mend them, or leave them out with dataset.on_invalid=drop",
    ]


def test_an_unknown_model_folder(refused: Refused, tmp_path: Path) -> None:
    model = tmp_path / "no-model"
    assert refused(ModelError, f"model_id={model}") == (
        f"{model}: no such model folder; check the path, or name a model of the hub as owner/name"
    )
    model.mkdir()
    assert refused(ModelError, f"model_id={model}") == (
        f"{model}: no tokenizer.json; llmforge needs the model's fast tokenizer"
    )
    (model / "tokenizer.json").write_text("{}")
    assert refused(ModelError, f"model_id={model}") == f"{model}: no config.json; expected a Hugging Face model folder"


def test_a_context_below_the_shortest_row(refused: Refused) -> None:
    message = refused(DataError, "context_length=8")
    lengths = re.search("shortest has ([0-9]+)", message)
    assert lengths is not None
    assert message == (
        f"context_length: no train row fits into 8 tokens: the shortest has {lengths[1]}, "
        f"95 % have at most {lengths[1]}; raise context_length"
    )


def test_a_context_beyond_the_model(refused: Refused, quickstart_material: Path) -> None:
    assert refused(ConfigError, "context_length=512") == (
        f"context_length: found 512, allowed is at most 256, the longest sequence of {quickstart_material / 'model'}"
    )


def test_more_devices_than_the_cluster_has(refused: Refused) -> None:
    assert refused(ClusterError, "num_devices=3", "worker_resources={licence: 1}").splitlines() == [
        "num_devices: the cluster is too small for the training workers:",
        "  CPU: 3 x 1 = 3 needed, the cluster has 2",
        "  licence: 3 x 1 = 3 needed, the cluster has 0",
        "lower num_devices (and raise gradient_accumulation_steps by the same factor), or add nodes, or set "
        "resource_timeout_seconds to wait for nodes that are still to come",
    ]


def test_a_gpu_that_is_not_there(refused: Refused) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    assert refused(ConfigError, "accelerator=gpu") == (
        "accelerator: found gpu, but the cluster has none; choose auto or cpu, or add a GPU"
    )


def test_an_output_folder_that_cannot_be_made(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(StorageError, f"output_dir={tmp_path / 'file' / 'runs'}")
    assert message.startswith(f"{tmp_path / 'file' / 'runs'}/.write-test-")
    assert message.endswith("A file stands where a folder is needed: remove it, or choose another folder.")


def test_a_missing_deepspeed_file(refused: Refused, tmp_path: Path) -> None:
    assert refused(ConfigError, f"deepspeed={{config_path: {tmp_path}/no.json}}") == (
        f"deepspeed.config_path: {tmp_path}/no.json: cannot be read: No such file or directory; "
        "the path counts from the working directory"
    )


def test_a_deepspeed_file_with_an_auto_that_means_nothing(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}))
    message = refused(ConfigError, f"deepspeed={{config_path: {path}}}")
    assert message.startswith(
        "deepspeed.zero_optimization.sub_group_size: found auto, allowed is a value: auto can be filled in for "
    )


def test_a_deepspeed_section_that_contradicts_the_job(refused: Refused) -> None:
    assert refused(ConfigError, "deepspeed={gradient_accumulation_steps: 8}") == (
        "deepspeed.gradient_accumulation_steps: found 8, but the job says 1 (gradient_accumulation_steps); "
        "write auto, or change one of them"
    )


def test_a_run_folder_with_checkpoints(train: Run, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "test"
    files = tmp_path / "files"
    files.mkdir()
    (files / "model").write_text("weights")
    store = CheckpointStore(open_storage(str(run)))
    store.upload_rank("step-00000007-ab", files, 0, 1)
    store.commit("step-00000007-ab")
    with pytest.raises(ConfigError) as caught:
        train()
    assert str(caught.value) == (
        f"run_name: {run} already holds 1 checkpoints, the latest of step 7; "
        "go on with --resume, or choose another run_name"
    )
    assert [info.name for info in store.list()] == ["step-00000007-ab"]


def test_nothing_to_resume(refused: Refused, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert refused(CheckpointError, resume=True) == (
        f"--resume: {runs}/test does not exist; check run_name, or start without --resume"
    )
    advice = "Name one with run_name=..., or start without --resume (a changed job is another job)"
    assert refused(CheckpointError, "run_name=null", resume=True) == (
        f"--resume: {runs} holds no run of this job; runs there: none. {advice}"
    )
    (runs / "other").mkdir(parents=True)
    (runs / "other" / "job.yaml").touch()
    assert refused(CheckpointError, "run_name=null", resume=True) == (
        f"--resume: {runs} holds no run of this job; runs there: other. {advice}"
    )


def test_a_missing_bucket(refused: Refused, s3_on_nodes: S3Server) -> None:
    place = f"the bucket does not exist (NoSuchBucket); the server is {s3_on_nodes.url}. "
    message = refused(StorageError, "output_dir=s3://no-such-bucket/runs")
    assert message.startswith("s3://no-such-bucket/runs/.write-test-")
    assert message.endswith(f"/content: cannot upload: {place}Create it, or correct the address.")
    assert refused(StorageError, "train_path=s3://no-such-bucket/train.jsonl") == (
        f"s3://no-such-bucket/train.jsonl: cannot read: {place}Create it, or correct the address."
    )


def test_a_missing_object(refused: Refused, s3_on_nodes: S3Server, s3_bucket: str) -> None:
    assert refused(StorageError, f"train_path=s3://{s3_bucket}/no.jsonl") == (
        f"s3://{s3_bucket}/no.jsonl: no such object at {s3_on_nodes.url}. Check the address."
    )


def test_wrong_credentials(
    refused: Refused, s3_client: S3Client, s3_bucket: str, s3_on_nodes: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-key")
    found = (
        "the secret key does not fit the access key (wrong credentials) (SignatureDoesNotMatch); "
        f"the server is {s3_on_nodes.url}. Check AWS_SECRET_ACCESS_KEY and AWS_ACCESS_KEY_ID; "
        "a blank or a line end after them counts as part of them."
    )
    message = refused(StorageError, f"output_dir=s3://{s3_bucket}/runs")
    assert message.endswith(f"/content: cannot upload: {found}")
    message = refused(StorageError, f"train_path=s3://{s3_bucket}/train.jsonl")
    assert message == f"s3://{s3_bucket}/train.jsonl: cannot read: {found}"
    assert "another-secret-key" not in message


def test_an_adapter_for_another_model_ends_the_run_at_once(
    train: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only a worker can find it; a second start would find the same, so there is none."""
    adapter = write_misfit(tmp_path / "adapter")
    before = _num_worker_processes()
    with pytest.raises(ModelError) as caught:
        train(
            "lora_config={target_modules: [q_proj], r: 4}",
            f"initial_adapter_model_ckpt_path={adapter}",
        )
    assert str(caught.value).startswith(f"{adapter}: the adapter does not fit the base model: size mismatch for base_")
    assert len(str(caught.value).splitlines()) == 1
    assert _num_worker_processes() - before == 1
    assert not (tmp_path / "runs" / "test" / "checkpoints").exists()
    assert "Traceback" not in capfd.readouterr().err

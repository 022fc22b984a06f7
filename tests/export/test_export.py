"""Runs of a real model exported whole: what stands in the folder computes and answers as the run does."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from typer.testing import CliRunner

import llmforge
from llmforge.checkpoint.exported import EXPORT_RECORD
from llmforge.cli.main import app
from llmforge.errors import ConfigError, ModelError
from llmforge.export.folder import ExportRequest, ExportResult, export_run
from llmforge.export.merge import relative_error
from llmforge.export.verify import fetch_tokenizer
from llmforge.inference.find import find_trained_model
from llmforge.storage.base import open_storage, read_bytes
from tests.export.trained_runs import TrainedRun, commit, full_run, logits_of, lora_run

pytestmark = pytest.mark.slow
ASK = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def lora(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return lora_run(stories, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def full(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return full_run(stories, tmp_path_factory.mktemp("full"))


def export(run: TrainedRun, output: Path | str, cache: Path, **changes: Any) -> ExportResult:
    return export_run(ExportRequest(str(run.uri), str(output), **changes), cache)


def adapted(run: TrainedRun) -> PeftModel:
    """Base and adapter of a checkpoint, by PEFT alone."""
    base = AutoModelForCausalLM.from_pretrained(run.job.model_id)
    return PeftModel.from_pretrained(base, run.checkpoint)


def test_merged_weights_equal_base_and_adapter(lora: TrainedRun, tmp_path: Path) -> None:
    result = export(lora, tmp_path / "out", tmp_path)
    expected = logits_of(adapted(lora))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_error(logits_of(found), expected) < 1e-5
    assert relative_error(logits_of(AutoModelForCausalLM.from_pretrained(lora.job.model_id)), expected) > 0.1
    assert result.weights is not None
    assert (result.weights.num_prompts, result.weights.num_tensors) == (3, 48)
    assert result.weights.largest_error < 1e-5
    assert result.verification.is_equal
    assert result.verification.origin == "3 rows of the validation data"


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_16_bits(dtype: Any, expected: torch.dtype, lora: TrainedRun, tmp_path: Path) -> None:
    result = export(lora, tmp_path / "out", tmp_path, dtype=dtype)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.dtype == expected
    merged = adapted(lora).merge_and_unload()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name].to(expected)), name  # rounded once, from fp32
    assert result.weights is not None
    assert 0 < result.weights.largest_error < result.weights.tolerance
    assert llmforge.load(tmp_path / "out").generate(ASK)


def plain_answer(folder: Path) -> str:
    """What `transformers` alone answers, by the files of the folder and nothing else."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(output, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_everybody_gives_the_same_answer(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: TrainedRun = request.getfixturevalue(kind)
    export(run, tmp_path / "out", tmp_path)
    answer = llmforge.load(run.uri, cache_folder=tmp_path).generate(ASK)
    assert len(answer) > 10
    assert llmforge.load(tmp_path / "out", cache_folder=tmp_path).generate(ASK) == answer
    assert plain_answer(tmp_path / "out") == answer.strip()


def test_the_files_of_merged_weights(lora: TrainedRun, tmp_path: Path) -> None:
    result = export(
        lora, tmp_path / "out", tmp_path, max_shard_size="500KB", targets=("vllm", "ollama", "ray-serve-llm")
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "llmforge.json", "model.safetensors.index.json",
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "vllm.yaml", "serve_vllm.sh", "ray_serve_llm.yaml", "Modelfile",
    }  # fmt: skip
    assert result.launch_files == ("vllm.yaml", "serve_vllm.sh", "Modelfile", "ray_serve_llm.yaml")
    assert (tmp_path / "out" / "serve_vllm.sh").stat().st_mode & 0o111
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("*.safetensors")} == {
        (tmp_path / "out" / "config.json").stat().st_mode & 0o777
    }
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.max_new_tokens, generation.do_sample) == ([1, 2], 20, False)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_adapter_alone(lora: TrainedRun, tmp_path: Path) -> None:
    result = export(lora, tmp_path / "out", tmp_path, only_adapter=True, targets=("vllm",))
    assert result.weights is None
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (lora.checkpoint / name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(lora.job.model_id)
    found = logits_of(PeftModel.from_pretrained(base, tmp_path / "out"))
    assert torch.equal(found, logits_of(adapted(lora)))
    answer = llmforge.load(lora.uri, cache_folder=tmp_path).generate(ASK)
    assert llmforge.load(tmp_path / "out", cache_folder=tmp_path).generate(ASK) == answer
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 2]


def test_the_command(lora: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    words = ["export", str(lora.uri), str(tmp_path / "out"), "--dtype", "bf16", "--to", "vllm", "--to", "ollama"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    first, prompts, weights, files = done.stdout.splitlines()
    assert first.startswith(f"exported step-00000010-a to {tmp_path / 'out'} (")
    assert prompts.startswith("prompts: 3 rows of the validation data; chat template: 3 equal, 0 different; server: 3")
    assert weights.startswith("weights: logits of 3 prompts differ from the checkpoint's by at most ")
    assert files == "launch files: vllm.yaml, serve_vllm.sh, Modelfile"


def test_stop_texts_and_sampling_of_the_job(stories: Path, tmp_path: Path) -> None:
    generation = {"stopping_sequences": ["!", [403, 407]], "temperature": 0.5, "top_p": 0.9}
    run = full_run(stories, tmp_path / "run", generation_config=generation)
    export(run, tmp_path / "out", tmp_path, targets=("vllm",))
    assert '"stop": ["!", "Once upon"]' in (tmp_path / "out" / "vllm.yaml").read_text()
    assert "name it in `stop` of every request" in (tmp_path / "out" / "README.md").read_text()
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["top_p"], written["top_k"]) == (True, 0.5, 0.9, 0)


def test_without_the_data_of_the_run(stories: Path, tmp_path: Path) -> None:
    run = lora_run(stories, tmp_path / "run")
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / "run" / name).unlink()
    result = export(run, tmp_path / "out", tmp_path)
    assert "probe conversations, because the data cannot be read" in result.verification.origin
    assert result.weights is not None
    assert result.weights.num_prompts == 4
    assert result.weights.largest_error < 1e-5


def test_a_quantized_run_is_merged_into_the_whole_base(
    stories: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = lora_run(stories, tmp_path / "run", quantization={"bits": 4})
    with caplog.at_level(logging.WARNING):
        export(run, tmp_path / "out", tmp_path)
    assert "the adapter was trained on a base model in 4 bits" in caplog.text
    assert "answers may differ slightly" in (tmp_path / "out" / "README.md").read_text()
    assert (
        relative_error(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits_of(adapted(run)))
        < 1e-5
    )


def test_weights_that_cannot_be_merged_leave_nothing(lora: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(lora.checkpoint.parents[3] / "weights", tmp_path / "weights")
    path = tmp_path / "weights" / "adapter_model.safetensors"
    save_file({name: tensor.fill_(float("nan")) for name, tensor in load_file(path).items()}, path)
    commit(tmp_path / "run", tmp_path / "weights", lora.job)
    with pytest.raises(ModelError, match="the adapter cannot be merged: NaNs detected"):
        export_run(ExportRequest(str(tmp_path / "run"), str(tmp_path / "out")), tmp_path)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("full", {"only_adapter": True}, "--adapter: found a run that trained all weights"),
        ("lora", {"only_adapter": True, "dtype": "bf16"}, "--dtype: found bf16 with --adapter, allowed is same"),
        ("lora", {"max_shard_size": "big"}, "--max-shard-size: found 'big', allowed is a size such as 5GB"),
        ("lora", {"targets": ("tgi",)}, "--to: found 'tgi', allowed are vllm, ray-serve-llm, ollama"),
        ("lora", {"only_adapter": True, "targets": ("ollama",)}, "--to ollama: found --adapter"),
    ],
)
def test_what_is_refused(
    kind: str, changes: dict[str, Any], message: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(request.getfixturevalue(kind), tmp_path / "out", tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_an_export_is_not_exported_again(full: TrainedRun, tmp_path: Path) -> None:
    export(full, tmp_path / "out", tmp_path)
    with pytest.raises(ConfigError, match="found an exported folder, allowed is a run or a checkpoint"):
        export_run(ExportRequest(str(tmp_path / "out"), str(tmp_path / "again")), tmp_path)


def test_to_an_object_store(lora: TrainedRun, s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/models/out"
    result = export(lora, uri, tmp_path / "cache", max_shard_size="500KB", targets=("vllm", "ray-serve-llm"))
    storage = open_storage(uri)
    assert result.uri == uri
    assert {"README.md", "vllm.yaml", "model-00003-of-00003.safetensors", EXPORT_RECORD} <= {
        file.key for file in storage.list()
    }
    newest = max(storage.list(), key=lambda file: file.modified_at)
    assert newest.modified_at == next(file for file in storage.list() if file.key == EXPORT_RECORD).modified_at
    answer = llmforge.load(lora.uri, cache_folder=tmp_path / "cache").generate(ASK)
    assert llmforge.load(uri, cache_folder=tmp_path / "other").generate(ASK) == answer
    with pytest.raises(ConfigError, match="allowed is an empty or a new folder"):
        export(lora, uri, tmp_path / "cache")
    export(lora, uri, tmp_path / "cache", only_adapter=True, replace=True)
    left = {file.key for file in storage.list()}
    assert "adapter_model.safetensors" in left
    assert not any(name.startswith("model-") for name in left)
    assert json.loads(read_bytes(storage, EXPORT_RECORD))["version"] == 1


def test_a_run_in_an_object_store(full: TrainedRun, s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/runs/mine"
    commit(uri, full.checkpoint.parents[3] / "weights", full.job)
    small = fetch_tokenizer(find_trained_model(uri, "best", tmp_path / "few"), tmp_path / "few")
    assert (small / "chat_template.jinja").is_file()
    assert not list(small.glob("*.safetensors"))
    result = export_run(ExportRequest(uri, str(tmp_path / "out")), tmp_path / "cache")
    assert result.weights is not None
    assert result.weights.largest_error == 0

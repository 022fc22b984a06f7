"""Runs as training leaves them, made without training: a small real model, real files, rows that tell stories."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.config.model import LoraConfig
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.config.sizing import DataSizes, size_job
from llmforge.dataset.tokenize import special_tokens
from llmforge.models.adapter import add_adapter
from llmforge.models.load import load_base_model
from llmforge.prompt.chat_template import chat_template
from llmforge.storage.base import open_storage
from tests.inference.runs import STORY

CHECKPOINT = "step-00000010-a"
OPENINGS = ("Once upon a time", "One day, a girl named Lily", "Tom had a big dog", "The sun was hot", "A cat sat")
PROMPT = torch.tensor([[1, 403, 407, 261, 378]])
TARGETS = ("q_proj", "v_proj", "down_proj")


def rows(count: int = 5) -> list[dict[str, Any]]:
    """Conversations of one and of two turns."""
    found = []
    for number in range(count):
        messages = [
            {"role": "user", "content": OPENINGS[number % len(OPENINGS)]},
            {"role": "assistant", "content": "there was a dog."},
        ]
        if number % 2:
            messages += [{"role": "user", "content": "Then he"}, {"role": "assistant", "content": "ran home."}]
        found.append({"messages": messages})
    return found


def write_rows(path: Path, written: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return path


@dataclass(frozen=True)
class TrainedRun:
    """A run with one checkpoint."""

    uri: Path
    job: JobConfig
    checkpoint: Path


def make_job(model: Path, folder: Path, **changes: Any) -> JobConfig:
    """A resolved job with training and validation rows in `folder`."""
    generation = {"prompt_format": STORY.model_dump(), "max_tokens": 20, **changes.pop("generation_config", {})}
    keys = {
        "model_id": str(model),
        "train_path": str(write_rows(folder / "train.jsonl", rows())),
        "valid_path": str(write_rows(folder / "valid.jsonl", changes.pop("valid_rows", rows(3)))),
        "output_dir": str(folder / "runs"),
        "precision": "fp32",
        "accelerator": "cpu",
        "generation_config": generation,
        **changes,
    }
    facts = JobFacts(has_gpu=False, started_at=datetime(2026, 1, 2), model_context_length=512)
    job = resolve_job(JobConfig.model_validate_json(json.dumps(keys)), facts)
    return size_job(job, DataSizes(length_p95=100, longest_tokens=200, num_train_samples=8, model_context_length=512))


def commit(run: Path | str, folder: Path, job: JobConfig, template: str | None = None, **metadata: Any) -> None:
    """A checkpoint of one rank, with tokenizer, chat template (that of the job, or another) and resolved job."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.model_id)
    known = frozenset(special_tokens((Path(job.model_id) / "tokenizer.json").read_text()))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = chat_template(job.prompt_format, known) if template is None else template or None
    tokenizer.save_pretrained(folder)
    (folder / "resolved_job.yaml").write_text(job_to_yaml(job), encoding="utf-8")
    store = CheckpointStore(open_storage(str(run)))
    store.upload_rank(CHECKPOINT, folder, 0, 1, metadata)
    store.commit(CHECKPOINT)


def full_run(model: Path, folder: Path, **changes: Any) -> TrainedRun:
    """A run that trained all weights: here those of the model itself."""
    folder.mkdir(parents=True, exist_ok=True)
    job = make_job(model, folder, **changes)
    weights = folder / "weights"
    weights.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(model / name, weights / name)
    return _committed(folder, weights, job)


def lora_run(
    model: Path,
    folder: Path,
    lora: dict[str, Any] | None = None,
    classifier: Classifier | None = None,
    **changes: Any,
) -> TrainedRun:
    """A run that trained an adapter: here one of random numbers large enough to change every answer."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"r": 4, "target_modules": list(TARGETS), **(lora or {})}
    job = make_job(model, folder, lora_config=keys, **changes)
    weights = folder / "weights"
    random_adapter(model, LoraConfig.model_validate_json(json.dumps(keys)), job).save_pretrained(weights)
    if classifier is not None:
        (weights / CLASSIFIER_FILE).write_text(classifier.model_dump_json())
    return _committed(folder, weights, job)


def random_adapter(model: Path, lora: LoraConfig, job: JobConfig) -> PeftModel:
    """An adapter that changes what the model says."""
    torch.manual_seed(0)
    adapted = add_adapter(load_base_model(model, model, precision="fp32"), lora, job.model_id)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.3)
    return adapted


def _committed(folder: Path, weights: Path, job: JobConfig) -> TrainedRun:
    run = folder / "runs" / "mine"
    commit(run, weights, job, eval_loss=1.25)
    return TrainedRun(run, job, run / "checkpoints" / CHECKPOINT)


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    """Of one short text, at all positions."""
    with torch.no_grad():
        return cast(torch.Tensor, model(input_ids=PROMPT).logits)

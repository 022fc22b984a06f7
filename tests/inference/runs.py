"""Runs for tests of inference without training: the files of a real small model, committed as training leaves them."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.config.sizing import DataSizes, size_job
from llmforge.storage.base import open_storage

STORY = PromptFormat(
    bos="<s>",
    system="{instruction} ",
    user="{system}{instruction}",
    assistant=" {instruction}</s>",
    system_in_user=True,
)
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def make_job(model: Path, **changes: Any) -> JobConfig:
    """A resolved job, as a run stores it."""
    generation = {"prompt_format": STORY.model_dump(), "max_tokens": 40, **changes.pop("generation_config", {})}
    keys = {"model_id": str(model), "train_path": "train.jsonl", "precision": "fp32", "accelerator": "cpu", **changes}
    job = JobConfig.model_validate_json(json.dumps({**keys, "generation_config": generation}))
    job = resolve_job(job, JobFacts(has_gpu=False, started_at=datetime(2026, 1, 2), model_context_length=512))
    return size_job(job, DataSizes(length_p95=100, longest_tokens=200, num_train_samples=8, model_context_length=512))


def commit(run: Path | str, name: str, folder: Path, job: JobConfig, **metadata: float) -> CheckpointInfo:
    """A checkpoint of one rank, with the resolved job in it."""
    (folder / "resolved_job.yaml").write_text(job_to_yaml(job), encoding="utf-8")
    store = CheckpointStore(open_storage(str(run)))
    store.upload_rank(name, folder, 0, 1, metadata)
    return store.commit(name)


def copied(model: Path, target: Path) -> Path:
    """A new folder with the files of a model."""
    target.mkdir()
    for file in MODEL_FILES:
        shutil.copyfile(model / file, target / file)
    return target


def make_run(model: Path, folder: Path, **changes: Any) -> Path:
    """A run with one checkpoint of the model; `changes` to its job."""
    commit(folder / "run", "step-00000010-a", copied(model, folder / "weights"), make_job(model, **changes))
    return folder / "run"


@cache
def reference(folder: str) -> PreTrainedModel:
    """The model as `transformers` alone loads it."""
    return LlamaForCausalLM.from_pretrained(folder)


def generated_by(reference: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """What `transformers` alone answers, without what ended it."""
    ids = torch.tensor([prompt])
    output = reference.generate(ids, do_sample=False, max_new_tokens=max_tokens, attention_mask=torch.ones_like(ids))
    answer: list[int] = output[0, len(prompt) :].tolist()
    ends = [index for index, token in enumerate(answer) if token in (1, 2)]
    return answer[: ends[0]] if ends else answer


def spelled(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of tokens by their words, every space kept."""
    words = tokenizer.convert_ids_to_tokens(ids)
    encoded = [bytes.fromhex(word[3:5]) if re.fullmatch("<0x..>", word) else word.encode() for word in words]
    return b"".join(encoded).decode().replace("\u2581", " ")

"""The model, the rows and the job of `train.py`: real conversations, prepared and packed by llmforge.

    python benchmarks/train_material.py SETTINGS.json FOLDER

In: `Settings`. Out, in the folder: a model with random weights that has a real tokenizer, `job.json`, the prepared
dataset below `runs`, and `plan.json` and `rows.json` with the very packs in the order in which llmforge trains on them.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from train_plan import LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM, Document, Pack, Plan, write_plan, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.dataset.shards import Sample, SampleReader, sample_order, shard_name

MODEL = "Llama-2-7b-chat-hf"
"""The folder's name tells llmforge the prompt format, that of the tokenizer."""
SOURCES = ("dolly15k", "gsm8k-train", "oasst1-threads")
ROWS_PER_STEP = 24
"""More than four sequences of 1024 tokens hold."""
SEED = 42


@dataclass(frozen=True)
class Settings:
    """What the options of `train.py` say."""

    material: str
    """Folder with `tokenizers/llama2-hf` and `data/chat`."""
    layers: int
    hidden: int
    vocabulary: int
    context_length: int
    sequences_per_step: int
    num_steps: int
    precision: Literal["fp32", "bf16"]
    method: Literal["full", "lora"]
    threads: int


def main() -> None:
    """Make all of it."""
    settings_file, folder = map(Path, sys.argv[1:])
    settings = Settings(**json.loads(settings_file.read_text()))
    model = folder / MODEL
    make_model(settings, model)
    num_rows = write_conversations(settings, folder / "train.jsonl")
    (folder / "job.json").write_text(json.dumps(job_keys(settings, folder)))
    command = [str(Path(sys.executable).with_name("llmforge")), "prepare", str(folder / "job.json"), "--json"]
    prepared = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    packs = list(used_packs(Path(prepared["path"]), settings))
    write_rows(folder / "rows.json", packs)
    plan = Plan(
        model_folder=str(model),
        num_steps=settings.num_steps,
        sequences_per_step=settings.sequences_per_step,
        context_length=settings.context_length,
        precision=settings.precision,
        method=settings.method,
        threads=settings.threads,
    )
    write_plan(folder / "plan.json", plan)
    tell(num_rows, packs)


def make_model(settings: Settings, folder: Path) -> None:
    """A Llama with heads of 32 numbers, two of which share keys and values."""
    torch.manual_seed(SEED)
    heads = max(2, settings.hidden // 32)
    config = LlamaConfig(
        vocab_size=settings.vocabulary, hidden_size=settings.hidden, intermediate_size=settings.hidden * 11 // 4,
        num_hidden_layers=settings.layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
        max_position_embeddings=max(2048, settings.context_length), tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (Path(settings.material) / "tokenizers" / "llama2-hf").glob("*.json"):
        shutil.copy(file, folder)


def write_conversations(settings: Settings, file: Path) -> int:
    """Rows of all sources in turn, from their beginning; returns how many."""
    per_source = ROWS_PER_STEP * settings.num_steps // len(SOURCES) + 1
    rows = [first_rows(Path(settings.material) / "data" / "chat" / f"{name}.jsonl", per_source) for name in SOURCES]
    mixed = [json.dumps({"messages": row["messages"]}) for turn in zip(*rows, strict=False) for row in turn]
    file.write_text("\n".join(mixed) + "\n")
    return len(mixed)


def first_rows(file: Path, num_rows: int) -> list[dict[str, Any]]:
    """The conversations at the beginning of a file."""
    with file.open() as lines:
        return [json.loads(line) for line in islice(lines, num_rows)]


def job_keys(settings: Settings, folder: Path) -> dict[str, Any]:
    """A job that takes the same steps as the other programs; devices and sequences of each are overrides."""
    lora = {"r": LORA_RANK, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "target_modules": "all-linear"}
    return {
        "model_id": str(folder / MODEL),
        "train_path": str(folder / "train.jsonl"),
        "output_dir": str(folder / "runs"),
        "accelerator": "cpu",
        "context_length": settings.context_length,
        "dataset": {"on_invalid": "drop"},
        "max_steps": settings.num_steps,
        "train_batch_size_per_device": settings.sequences_per_step,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "num_warmup_steps": 0,
        "max_grad_norm": MAX_GRAD_NORM,
        "precision": settings.precision,
        "lora_config": lora if settings.method == "lora" else None,
        "gradient_checkpointing": False,
        "seed": SEED,
    }


def used_packs(folder: Path, settings: Settings) -> Iterator[Pack]:
    """The packs of the run's steps, in its order."""
    reader = SampleReader([folder / shard_name("train")])
    order = sample_order(len(reader), SEED, epoch=0)
    num_used = settings.num_steps * settings.sequences_per_step
    assert len(order) >= num_used, f"{len(order)} sequences for {num_used}"
    return (documents_of(reader[int(index)]) for index in order[:num_used])


def documents_of(sample: Sample) -> Pack:
    """The examples of a sequence."""
    ends = np.cumsum(sample.example_lengths)
    ids, labels = (np.split(values, ends[:-1]) for values in (sample.input_ids, sample.labels))
    return [Document(*(part.tolist() for part in parts)) for parts in zip(ids, labels, strict=True)]


def tell(num_rows: int, packs: Iterable[Pack]) -> None:
    """What the programs train on."""
    documents = [document for pack in packs for document in pack]
    num_tokens = sum(len(document.input_ids) for document in documents)
    share = sum(document.num_trained_tokens for document in documents) / num_tokens
    print(
        f"{num_rows} rows; trained on {len(documents)} of them, {num_tokens} tokens, {share:.1%} of them with a label"
    )


if __name__ == "__main__":
    main()

"""llmforge's training step in this process, without Ray: for machines that have no Ray, and for profilers.

    python benchmarks/train_bare.py FOLDER

In and out as in train_peers.py: `plan.json` and `rows.json`, then `llmforge.json`. Model, attention, batches, loss and
optimizer are composed as `llmforge.train.model` and the worker compose them; weights are drawn as the peers draw them.
"""

import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from train_peers import base_of, peak_bytes, process_peak_bytes
from train_plan import (
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    WARM_UP_STEPS,
    Pack,
    Plan,
    Result,
    StepLog,
    read_plan,
    read_rows,
    steps_of,
    write_result,
)
from transformers import AutoConfig, AutoModelForCausalLM

from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.model import LoraConfig
from llmforge.config.training import AdamW
from llmforge.dataset.shards import Sample
from llmforge.models.adapter import add_adapter
from llmforge.models.attention import BY_DOCUMENTS, use_attention
from llmforge.train.batches import Layout, StepBatches, collate
from llmforge.train.engine import TrainingEngine
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer


def main() -> None:
    """Train, and write what was measured."""
    folder = Path(sys.argv[1])
    plan, packs = read_plan(folder / "plan.json"), read_rows(folder / "rows.json")
    torch.set_num_threads(plan.threads)
    import_bytes = process_peak_bytes() if plan.device == "cpu" else 0
    start_one_rank(plan)
    log, parts = train(plan, packs)
    result = replace(Result.of(log, peak_bytes(plan), import_bytes), part_seconds=parts)
    write_result(folder / "llmforge.json", result)
    dist.destroy_process_group()


def start_one_rank(plan: Plan) -> None:
    """DeepSpeed wants to be one of several ranks."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if plan.device == "cuda" else "gloo"
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=0, world_size=1)


def train(plan: Plan, packs: Sequence[Pack]) -> tuple[StepLog, dict[str, float]]:
    """All steps, and the median of each part of them."""
    engine, layout = build_engine(plan)
    log, parts = StepLog(), list[Any]()
    for step in steps_of(packs, plan):
        log.add_batch(step)
        micro_batch = collate([sample_of(pack) for pack in step], layout)
        num_trained = log.num_trained_tokens[-1]
        result = engine.step(StepBatches([micro_batch], num_trained, num_trained, log.num_tokens[-1]), LEARNING_RATE)
        log.losses.append(result.loss)
        log.seconds.append(time.perf_counter())
        parts.append(result.part_seconds)
    counted = parts[WARM_UP_STEPS:]
    return log, {name: statistics.median(one[name] for one in counted) for name in counted[0]}


def build_engine(plan: Plan) -> tuple[TrainingEngine, Layout]:
    """The model under the engine, and how its batches are laid out."""
    device = torch.device(plan.device)
    model = build_model(plan)
    attention = use_attention(base_of(model), plan.attention, device=device)
    print(f"attention: {attention}")
    if plan.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(model.parameters(), AdamW(), LEARNING_RATE)
    config = build_deepspeed_config(
        None, zero_stage=0, micro_batch_size=plan.sequences_per_step, gradient_accumulation_steps=1, num_workers=1,
        precision=plan.precision, max_grad_norm=MAX_GRAD_NORM, hidden_size=base_of(model).config.hidden_size,
    )  # fmt: skip
    return TrainingEngine(NextTokenLoss(model), optimizer, config, device), Layout(attention in BY_DOCUMENTS)


def build_model(plan: Plan) -> Any:
    """In the precision of the plan, on its device."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    if list(Path(plan.model_folder).glob("*.safetensors")):
        model = AutoModelForCausalLM.from_pretrained(plan.model_folder, dtype=dtype).to(plan.device)
    else:
        with torch.device(plan.device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plan.model_folder), dtype=dtype)
    if plan.method == "lora":
        lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear")
        return add_adapter(model, lora, plan.model_folder)
    return model


def sample_of(pack: Pack) -> Sample:
    """As a reader of prepared data gives it."""
    return Sample(
        np.array([token for document in pack for token in document.input_ids], dtype=np.int32),
        np.array([label for document in pack for label in document.labels], dtype=np.int32),
        np.array([len(document.input_ids) for document in pack], dtype=np.int32),
    )


if __name__ == "__main__":
    main()

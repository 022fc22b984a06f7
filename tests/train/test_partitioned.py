"""A model that is loaded in parts trains as one that is loaded whole, in real ranks."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import PreTrainedModel

from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.training import AdamW
from llmforge.dataset.shards import SampleReader
from llmforge.models.attention import use_attention
from llmforge.models.load import load_base_model
from llmforge.models.partitioned import partitioned_loading
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.engine import TrainingEngine, start_deepspeed
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer
from tests.train.processes import run_ranks
from tests.train.ranks import Method, Precision, tiny_model, write_random_samples

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
NUM_WORKERS = 2
CASES: list[tuple[Method, Precision]] = [("full", "fp32"), ("full", "bf16"), ("lora", "fp32"), ("lora", "bf16")]


def _config(precision: Precision) -> dict[str, object]:
    return build_deepspeed_config(
        None, zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=2, num_workers=NUM_WORKERS,
        precision=precision, max_grad_norm=0.5, hidden_size=32,
    )  # fmt: skip


def _train_all(rank: int, folder: Path) -> None:
    start_deepspeed(CPU)
    found = {
        (method, precision, in_parts): _train(method, precision, folder, rank, in_parts=in_parts)
        for method, precision in CASES
        for in_parts in (False, True)
    }
    if rank == 0:
        torch.save(found, folder / "found.pt")


def _train(method: Method, precision: Precision, folder: Path, rank: int, *, in_parts: bool) -> list[float]:
    base = _load(precision, folder, in_parts=in_parts)
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = base if method == "full" else peft.get_peft_model(base, lora)
    use_attention(base, "auto", device=CPU)
    model.activation_checkpointing_enable()
    optimizer = build_optimizer(model.parameters(), AdamW(), 1e-3)
    engine = TrainingEngine(NextTokenLoss(model), optimizer, dict(_config(precision)), CPU)
    batches = TrainingBatches(
        SampleReader([folder / "packed.arrow"]), micro_batch_size=1, sequences_per_step=2 * NUM_WORKERS, rank=rank,
        num_workers=NUM_WORKERS, layout=Layout(by_documents=True),
    )  # fmt: skip
    return [engine.step(batches.step(step), 1e-3).loss for step in range(3)]


def _load(precision: Precision, folder: Path, *, in_parts: bool) -> PreTrainedModel:
    if not in_parts:
        return load_base_model(folder, folder, precision=precision)
    with partitioned_loading(_config(precision)):
        model = load_base_model(folder, folder, precision=precision)
    parameters = list(model.parameters())
    assert parameters
    for parameter in parameters:
        assert parameter.numel() == 0  # a place for the whole, filled while a layer is computed
        assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // NUM_WORKERS)
    return model


def test_partitioned_loading(tmp_path: Path) -> None:
    write_random_samples(tmp_path)
    tiny_model("full").save_pretrained(tmp_path)
    run_ranks(_train_all, NUM_WORKERS, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for method, precision in CASES:
        whole, parts = found[method, precision, False], found[method, precision, True]
        assert parts == pytest.approx(whole, rel=1e-6 if precision == "fp32" else 2e-3), (method, precision)
        assert np.ptp(whole) > 0

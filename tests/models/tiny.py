"""Tiny models with random weights, and what tests ask of them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from llmforge.config.model import QuantizationConfig
from llmforge.models.load import Precision, load_base_model

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.arange(24).reshape(2, 12)


def llama(**changes: object) -> PreTrainedModel:
    """Weights are larger than at the start of a training, so that answers differ clearly."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "initializer_range": 0.2, **changes}))


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def qwen2_moe() -> PreTrainedModel:
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SIZES, **experts, shared_expert_intermediate_size=32, decoder_sparse_step=1)
    )


def load(
    folder: Path, quantization: QuantizationConfig | None = None, precision: Precision = "fp32"
) -> PreTrainedModel:
    return load_base_model(folder, folder, precision=precision, quantization=quantization)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    answer: torch.Tensor = model.eval()(TOKENS).logits
    return answer


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds, as the engine gives them."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def train(model: torch.nn.Module, num_steps: int = 5, learning_rate: float = 5e-3) -> list[float]:
    """Losses of plain AdamW steps on the same tokens."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for _ in range(num_steps):
        loss = model.train()(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def adapted_layers(model: PeftModel) -> set[str]:
    """Last parts of the names of the layers that hold a trained weight."""
    names = {name.partition(".lora_")[0] for name in trained(model)}
    return {".".join(name.removesuffix(".base_layer").split(".")[5:]) for name in names}

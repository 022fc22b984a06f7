"""Merged layers compute what base and adapter did, whatever kind the adapter is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.export.merge import merge_adapter, relative_error
from llmforge.export.weights import fingerprints
from llmforge.models.adapter import add_adapter
from llmforge.models.load import load_base_model
from tests.export.trained_runs import TARGETS, logits_of, make_job, random_adapter

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
@pytest.mark.parametrize(
    "lora_keys",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 300]},
    ],
    ids=["dora", "rslora", "saved output layer", "embeddings", "output layer", "single tokens"],
)
def test_kinds_of_adapters(lora_keys: dict[str, Any], stories: Path, tmp_path: Path) -> None:
    """The base shares its two embeddings; where the adapter changes one of them, the export does not."""
    job = make_job(stories, tmp_path, lora_config={"r": 4, "target_modules": list(TARGETS), **lora_keys})
    assert job.lora_config is not None
    model = random_adapter(stories, job.lora_config, job)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name or "trainable_tokens_delta" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = logits_of(model.eval())
    merged = merge_adapter(model, torch.float32)
    assert relative_error(logits_of(merged), expected) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    read = load_base_model(tmp_path / "merged", tmp_path / "merged", precision="fp32")
    assert relative_error(logits_of(read), expected) < 1e-5


def test_adapted_experts(tmp_path: Path) -> None:
    """A model that holds all experts of a layer in one parameter, and is saved with one for each."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    keys = {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    adapted = add_adapter(model, LoraConfig.model_validate_json(json.dumps(keys)), "mixtral").eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    expected = logits_of(adapted)
    merged = merge_adapter(adapted, torch.float32)
    assert relative_error(logits_of(merged), expected) < 1e-5
    merged.save_pretrained(tmp_path, max_shard_size="20KB")
    read = load_base_model(tmp_path, tmp_path, precision="fp32")
    assert fingerprints(read) == fingerprints(merged)


def test_a_wrong_merge_is_seen(stories: Path, tmp_path: Path) -> None:
    """Here a layer whose matrices change behind the back of the merge."""
    job = make_job(stories, tmp_path, lora_config={"r": 4, "target_modules": ["q_proj"]})
    assert job.lora_config is not None
    model = random_adapter(stories, job.lora_config, job)
    layer = model.get_base_model().model.layers[2].self_attn.q_proj

    def change(*_: object) -> None:
        layer.lora_B["default"].weight.data *= 2

    layer.register_forward_hook(change)
    with pytest.raises(ModelError, match=r"model\.layers\.2\.self_attn\.q_proj: the merged layer differs from base"):
        merge_adapter(model, torch.float32)

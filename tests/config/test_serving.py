"""What a choice of LoRA costs later, in words."""

from __future__ import annotations

from typing import Any

import pytest

from llmforge.config.model import LoraConfig
from llmforge.config.serving import serving_warnings

SERVABLE: list[dict[str, Any]] = [
    {},
    {"target_modules": "all-linear", "use_rslora": True, "init_lora_weights": "gaussian"},
    {"target_modules": ("self_attn.q_proj", "down_proj"), "rank_pattern": {"q_proj": 2}},
    {"target_modules": ".*_proj"},
]
COSTLY: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ("model.embed_tokens", "lm_head")}, "embed_tokens and lm_head in target_modules"),
    ({"target_modules": "q_proj|lm_head"}, "lm_head in target_modules"),
    ({"modules_to_save": ("lm_head", "norm")}, "modules_to_save (lm_head, norm)"),
    ({"trainable_token_indices": (1,)}, "trainable_token_indices"),
    ({"target_parameters": ("experts.down_proj",)}, "target_parameters"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "lora_only"}, "bias: lora_only"),
]


@pytest.mark.parametrize("lora", SERVABLE)
def test_what_can_be_served(lora: dict[str, Any]) -> None:
    assert serving_warnings(LoraConfig(**lora)) == []


@pytest.mark.parametrize(("lora", "choice"), COSTLY)
def test_what_must_be_merged(lora: dict[str, Any], choice: str) -> None:
    assert serving_warnings(LoraConfig(**lora)) == [
        f"lora_config: with {choice} the adapter cannot be served beside the base model by vLLM and its kind; "
        "merge it into the weights to serve it, or remove the key"
    ]


def test_a_part_of_the_base_doubles_the_rank() -> None:
    assert serving_warnings(LoraConfig(init_lora_weights="pissa", r=16)) == [
        "lora_config: init_lora_weights pissa is saved as an adapter of rank 32, twice r, so that it fits the "
        "published base model; serve it with max_lora_rank of at least 32"
    ]

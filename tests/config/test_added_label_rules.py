"""What a job must not have that trains labels which are no token yet."""

from __future__ import annotations

from typing import Any

import pytest

from llmforge.config.added_label_rules import find_added_label_problems
from llmforge.config.job import JobConfig

LORA = {"target_modules": ["q_proj"]}
FUSED = {"enabled": True, "kwargs": {"fused_linear_cross_entropy": True}}


def problems(**keys: Any) -> dict[str, str]:
    """Last key to message."""
    job = JobConfig.model_validate(
        {
            "model_id": "some/model",
            "train_path": "rows.jsonl",
            "classifier_config": {"label_tokens": ["[[1]]", "[[2]]"]},
            **keys,
        }
    )
    return {str(found.path[-1]): found.message for found in find_added_label_problems(job, ["[[1]]", "[[2]]"])}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lora_config": LORA},
        {"lora_config": {"target_modules": "all-linear", "use_dora": True}},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"liger_kernel": FUSED},
    ],
)
def test_what_new_tokens_go_with(keys: dict[str, Any]) -> None:
    assert problems(**keys) == {}


@pytest.mark.parametrize(
    ("keys", "path", "found"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "stage", "found 3, allowed are 0 to 2"),
        (
            {"lora_config": LORA, "initial_adapter_model_ckpt_path": "adapter"},
            "initial_adapter_model_ckpt_path",
            "found an adapter, allowed is none",
        ),
        ({"lora_config": {**LORA, "trainable_token_indices": [3]}}, "trainable_token_indices", "found [3], allowed"),
        ({"lora_config": {"target_modules": ["q_proj", "lm_head"]}}, "target_modules", "found lm_head, allowed"),
        ({"lora_config": {**LORA, "modules_to_save": ["lm_head"]}}, "modules_to_save", "found lm_head, allowed"),
        ({"lora_config": LORA, "liger_kernel": FUSED}, "kwargs", "found fused_linear_cross_entropy, allowed is none"),
    ],
)
def test_what_they_do_not_go_with(keys: dict[str, Any], path: str, found: str) -> None:
    (told,) = problems(**keys).items()
    assert told[0] == path and told[1].startswith(found)
    assert "beside '[[1]]', '[[2]]' in classifier_config.label_tokens" in told[1]
    assert told[1].endswith("or choose labels that are one token already")

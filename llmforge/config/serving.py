"""What vLLM takes, and what a choice of LoRA costs later: which adapters it and its kind cannot serve beside a base.

In: the LoRA section of a resolved job. Out: sentences for the person who starts the run. Every such adapter can still
be merged into the base weights and served as a whole model.
"""

from __future__ import annotations

import re

from llmforge.config.model import LoraConfig

VLLM_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Its names of what a job calls precision."""
VLLM_MAX_RANK = 512
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, VLLM_MAX_RANK)
_EMBEDDINGS = ("embed_tokens", "lm_head")


def vllm_rank(rank: int) -> int | None:
    """The smallest `max_lora_rank` of vLLM that holds an adapter; None where there is none."""
    return next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)


def unservable_choices(lora: LoraConfig) -> list[str]:
    """What of it an adapter must not have that is served beside its base; empty where it can be."""
    embeddings = [name for name in _EMBEDDINGS if is_targeted(lora, name)]
    costs = {
        f"{' and '.join(embeddings)} in target_modules": bool(embeddings),
        f"modules_to_save ({', '.join(lora.modules_to_save or ())})": bool(lora.modules_to_save),
        "trainable_token_indices": bool(lora.trainable_token_indices),
        "target_parameters": bool(lora.target_parameters),
        "use_dora": lora.use_dora,
        f"bias: {lora.bias}": lora.bias != "none",
    }
    return [choice for choice, is_taken in costs.items() if is_taken]


def serving_warnings(lora: LoraConfig) -> list[str]:
    """One sentence for each choice that limits how the adapter can be served."""
    warnings = [
        f"lora_config: with {choice} the adapter cannot be served beside the base model by vLLM and its kind; "
        "merge it into the weights to serve it, or remove the key"
        for choice in unservable_choices(lora)
    ]
    if lora.changes_base:
        warnings.append(
            f"lora_config: init_lora_weights {lora.init_lora_weights} is saved as an adapter of rank {2 * lora.r}, "
            f"twice r, so that it fits the published base model; serve it with max_lora_rank of at least {2 * lora.r}"
        )
    return warnings


def is_targeted(lora: LoraConfig, name: str) -> bool:
    """Whether the adapter changes the layers that are called so."""
    targets = lora.target_modules
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, name) is not None
    return any(target.rpartition(".")[2] == name for target in targets or ())

"""What a job must not have that trains labels which are no token yet.

In: a resolved job and such labels. Out: findings. Whether a label is a token only a tokenizer knows, so these are no
rules of a job file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmforge.config.deepspeed import zero_stage_of
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from llmforge.config.model import LoraConfig
from llmforge.config.serving import is_targeted
from llmforge.config.training import DeepSpeedFile

_OUTPUT_LAYER = "lm_head"


def find_added_label_problems(job: JobConfig, labels: Sequence[str]) -> Iterator[Finding]:
    """What keeps a resolved job from training `labels`, which are new tokens of the vocabulary."""
    why = f"beside {', '.join(map(repr, labels))} in classifier_config.label_tokens, which are new tokens"
    remedy = "or choose labels that are one token already"
    assert not isinstance(job.deepspeed, DeepSpeedFile)  # `read_deepspeed` has read it
    if zero_stage_of(job.deepspeed or {}) == 3:
        found = f"found 3, allowed are 0 to 2 {why}: their weights are added to whole matrices; set a lower stage"
        yield Finding(("deepspeed", "zero_optimization", "stage"), f"{found}, {remedy}")
    if job.initial_adapter_model_ckpt_path is not None:
        found = f"found an adapter, allowed is none {why}: it has no weights for them; start from it merged (export)"
        yield Finding(("initial_adapter_model_ckpt_path",), f"{found}, {remedy}")
    if job.lora_config is not None:
        yield from _find_adapter_problems(job, job.lora_config, why, remedy)


def _find_adapter_problems(job: JobConfig, lora: LoraConfig, why: str, remedy: str) -> Iterator[Finding]:
    """An adapter holds the new rows of the output layer, by PEFT's wrapper around it."""
    liger = job.liger_kernel
    if liger is not None and liger.enabled and liger.kwargs.get("fused_linear_cross_entropy"):
        found = f"found fused_linear_cross_entropy, allowed is none {why}: it takes a plain output layer; remove it"
        yield Finding(("liger_kernel", "kwargs"), f"{found}, {remedy}")
    if lora.trainable_token_indices:
        found = f"found {list(lora.trainable_token_indices)}, allowed is none {why} and trained alone; remove it"
        yield Finding(("lora_config", "trainable_token_indices"), f"{found}, {remedy}")
    for key, has in (
        ("target_modules", is_targeted(lora, _OUTPUT_LAYER)),
        ("modules_to_save", _OUTPUT_LAYER in (lora.modules_to_save or ())),
    ):
        if has:
            found = f"found {_OUTPUT_LAYER}, allowed are other layers {why}: only its new rows are trained; remove it"
            yield Finding(("lora_config", key), f"{found}, {remedy}")

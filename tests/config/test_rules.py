"""Rules between keys, each with its exact message."""

from __future__ import annotations

import pytest

from tests.config.conftest import Load, Problems

VALIDATION = "needs validation data; add valid_path or dataset.valid_fraction"
CONTRADICTIONS = {
    "packing: true\npadding: longest": (
        "job.yaml:4: padding: found longest, but packing is true: packs are not padded; remove one key"
    ),
    "quantization: {bits: 4}": (
        "job.yaml:3: quantization: needs lora_config: weights in few bits cannot be trained; add it"
    ),
    "lora_config: {}\nquantization: {bits: 4, type: int8}": (
        "job.yaml:4: quantization.type: found int8 for 4 bits, allowed: nf4, fp4 for 4 and int8 for 8"
    ),
    "initial_adapter_model_ckpt_path: a": (
        "job.yaml:3: initial_adapter_model_ckpt_path: needs lora_config: without it all weights are trained and no "
        "adapter; add lora_config, or remove this key"
    ),
    "valid_path: [a.jsonl, {path: b.jsonl, weight: 2}]": (
        "job.yaml:3: valid_path[1].weight: weights are for training data: validation takes every row once; "
        "remove the key"
    ),
    "lora_config: {layers_pattern: h}": (
        "job.yaml:3: lora_config.layers_pattern: needs layers_to_transform; add it, or remove this key"
    ),
    "classifier_config: {label_tokens: [a, b]}\npreference_tuning_config: {}": (
        "job.yaml:3: classifier_config: cannot stand beside preference_tuning_config; remove one of them"
    ),
    "classifier_config: {label_tokens: [a, b]}\ntask: causal_lm": (
        "job.yaml:3: classifier_config: implies task classification, but task is causal_lm; remove one of them"
    ),
    "preference_tuning_config: {}\ntask: instruction_tuning": (
        "job.yaml:3: preference_tuning_config: implies task preference_tuning, but task is instruction_tuning; "
        "remove one of them"
    ),
    "task: classification": "job.yaml:3: task: found classification, which needs classifier_config; add it",
    "task: preference_tuning": (
        "job.yaml:3: task: found preference_tuning, which needs preference_tuning_config; add it"
    ),
    "task: causal_lm\ndataset: {train_on: last_turn}": (
        "job.yaml:4: dataset.train_on: found last_turn, but task causal_lm trains every token; "
        "set task: instruction_tuning, or remove this key"
    ),
    "valid_path: a.jsonl\ndataset: {valid_fraction: 0.1}": (
        "job.yaml:4: dataset.valid_fraction: cannot stand beside valid_path; remove one of them"
    ),
    "early_stopping: {patience: 1}": f"job.yaml:3: early_stopping: {VALIDATION}",
    "eval_first: true": f"job.yaml:3: eval_first: {VALIDATION}",
    "precision: fp16\naccelerator: cpu": (
        "job.yaml:3: precision: found fp16 with accelerator cpu, allowed on CPUs: fp32, bf16, auto"
    ),
    "attention: flash_attention_2\nflash_attention_2: false": (
        "job.yaml:3: attention: found flash_attention_2, but flash_attention_2 is false; remove one of them"
    ),
}


@pytest.mark.parametrize(("text", "message"), CONTRADICTIONS.items())
def test_contradictions(problems: Problems, text: str, message: str) -> None:
    assert message in problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "packing: false\npadding: max_length",
        "padding: longest",
        "packing: true",
        "early_stopping: {}\ndataset: {valid_fraction: 0.1}",
        "eval_first: true\nvalid_path: a.jsonl",
        "num_epochs: 2\nmax_steps: 10",
        "lora_config: {layers_pattern: h, layers_to_transform: [0, 1]}",
        "precision: bf16\naccelerator: cpu",
    ],
)
def test_what_goes_together(load: Load, text: str) -> None:
    load(text)


def test_an_unknown_family_may_bring_its_format_with_its_tokenizer(load: Load) -> None:
    start = "model_id: models/my-model\ntrain_path: a.jsonl\n"
    assert load(start, whole=True).generation_config is None
    own = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}'}"
    assert load(f"{start}generation_config: {{prompt_format: {own}}}", whole=True).prompt_format.user == "{instruction}"

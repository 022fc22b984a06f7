"""Rules between keys, each with its exact message."""

from __future__ import annotations

import pytest

from tests.config.conftest import Load, Problems

VALIDATION = "needs validation data; add valid_path or dataset.valid_fraction"
CONTRADICTIONS = {
    "packing: true\npadding: longest": (
        "job.yaml:4: padding: found longest, but packing is true: packs are not padded; remove one key"
    ),
    "optimizer: {type: sgd, nesterov: true}": (
        "job.yaml:3: optimizer.nesterov: needs momentum above 0; add optimizer.momentum, or remove this key"
    ),
    "quantization: {bits: 4}": (
        "job.yaml:3: quantization: needs lora_config: weights in few bits cannot be trained; add it"
    ),
    "lora_config: {}\nquantization: {bits: 4, type: int8}": (
        "job.yaml:4: quantization.type: found int8 for 4 bits, allowed: nf4, fp4 for 4 and int8 for 8"
    ),
    "lora_config: {init_lora_weights: pissa}\nquantization: {bits: 4}": (
        "job.yaml:3: lora_config.init_lora_weights: found pissa, which takes a part out of the base weights and does "
        "not fit beside quantization: what remains would be rounded anew, and the saved adapter would not make up for "
        "it; use true"
    ),
    "lora_config: {use_dora: true}\nquantization: {bits: 8}": (
        "job.yaml:3: lora_config.use_dora: found true, allowed with 8 bits is false: PEFT's DoRA loses the scales of "
        "such weights; use bits: 4, or remove the key"
    ),
    "lora_config: {init_lora_weights: loftq}": (
        "job.yaml:3: lora_config.init_lora_weights: found 'loftq', which is not offered: it quantizes the base weights "
        "in a way that can neither be stored nor served; use true"
    ),
    "lora_config: {init_lora_weights: orthogonal, r: 4, rank_pattern: {q_proj: 3}}": (
        "job.yaml:3: lora_config.init_lora_weights: found orthogonal, which needs even ranks (r, rank_pattern); "
        "choose one, or use true"
    ),
    "lora_config: {init_lora_weights: olora}\ninitial_adapter_model_ckpt_path: a": (
        "job.yaml:3: lora_config.init_lora_weights: found olora, but initial_adapter_model_ckpt_path gives the initial "
        "values; remove it"
    ),
    "lora_config: {init_lora_weights: olora, fan_in_fan_out: true}": (
        "job.yaml:3: lora_config.init_lora_weights: found olora, which is not offered for layers of fan_in_fan_out; "
        "use true"
    ),
    "lora_config: {init_lora_weights: pissa_niter_4, use_rslora: true, rank_pattern: {q_proj: 4}}": (
        "job.yaml:3: lora_config.init_lora_weights: found pissa_niter_4, which cannot be saved for the published base "
        "where use_rslora meets rank_pattern or alpha_pattern; remove one of them"
    ),
    "lora_config: {target_modules: '.*q_proj', layers_to_transform: 1}": (
        "job.yaml:3: lora_config.layers_to_transform: cannot stand beside a regular expression in target_modules, "
        "which names the layers itself; remove this key, or give target_modules as a list"
    ),
    "lora_config: {lora_bias: true}": (
        "job.yaml:3: lora_config.lora_bias: found true, allowed is false: such an adapter can be neither served by "
        "vLLM and its kind nor merged into layers that have no bias; remove the key"
    ),
    "lora_config: {target_parameters: [a], lora_dropout: 0.1}": (
        "job.yaml:3: lora_config.lora_dropout: found 0.1, but target_parameters adapts parameters without a layer of "
        "their own, for which there is none; remove one of them"
    ),
    "lora_config: {target_parameters: [a], init_lora_weights: olora}": (
        "job.yaml:3: lora_config.target_parameters: cannot start with init_lora_weights olora; remove one of them"
    ),
    "liger_kernel: {enabled: true, kwargs: {cross_entropy: true}}": (
        "job.yaml:3: liger_kernel.kwargs.cross_entropy: found true, allowed is false: it wants the full matrix of "
        "logits, which llmforge never makes; remove the key, or set fused_linear_cross_entropy"
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
    "preference_tuning_config: {loss: ipo, gamma: 1.5}": (
        "job.yaml:3: preference_tuning_config.gamma: means nothing with loss ipo, only with simpo; remove it"
    ),
    "preference_tuning_config: {loss: orpo, label_smoothing: 0.1}": (
        "job.yaml:3: preference_tuning_config.label_smoothing: means nothing with loss orpo, only with dpo; remove it"
    ),
    "preference_tuning_config: {loss: simpo, reference: precomputed}": (
        "job.yaml:3: preference_tuning_config.reference: means nothing with loss simpo, only with dpo, ipo, "
        "kto; remove it"
    ),
    "preference_tuning_config: {desirable_weight: 1.5}": (
        "job.yaml:3: preference_tuning_config.desirable_weight: means nothing with loss dpo, only with kto; remove it"
    ),
    "preference_tuning_config: {loss: kto, undesirable_weight: 0.5, label_smoothing: 0.1}": (
        "job.yaml:3: preference_tuning_config.label_smoothing: means nothing with loss kto, only with dpo; remove it"
    ),
    "preference_tuning_config: {reference: adapter_off}": (
        "job.yaml:3: preference_tuning_config.reference: found adapter_off, but without lora_config there is no "
        "adapter; set precomputed, or remove the key"
    ),
    "preference_tuning_config: {reference: adapter_off}\nlora_config: {init_lora_weights: pissa}": (
        "job.yaml:3: preference_tuning_config.reference: found adapter_off, but init_lora_weights pissa takes a part "
        "out of the base weights; set precomputed, or remove the key"
    ),
    "preference_tuning_config: {reference: adapter_off, logprob_processor_scaling_config: {}}\nlora_config: {}": (
        "job.yaml:3: preference_tuning_config.logprob_processor_scaling_config: gives workers to a reference model, "
        "but reference is adapter_off; remove one of them"
    ),
    "preference_tuning_config: {}\ndataset: {over_length: truncate}": (
        "job.yaml:4: dataset.over_length: found truncate, allowed with preference_tuning_config: drop, error (an "
        "answer that is cut is not the one that somebody has preferred)"
    ),
    "preference_tuning_config: {}\nliger_kernel: {enabled: true, kwargs: {fused_linear_cross_entropy: true}}": (
        "job.yaml:4: liger_kernel.kwargs.fused_linear_cross_entropy: found true, allowed with "
        "preference_tuning_config is false: pairs are compared by llmforge's own loss, which makes no full matrix of "
        "logits either; remove the key"
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

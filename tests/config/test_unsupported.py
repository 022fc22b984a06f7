"""What the schema knows and llmforge cannot do yet is refused; what it can is accepted."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from llmforge.config.data import RowFormat
from llmforge.config.job import JobConfig
from tests.config.conftest import Load, Problems

FILES = (
    "allowed for now: files of JSON, CSV, Parquet and Arrow, folders and globs of them, local or s3://, and "
    "Hugging Face datasets"
)
PROMPT_FORMAT = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}', tool: '{instruction}'}"
COLUMNS = "{messages: conversations, role: from, content: value}"
REFUSED = {
    "valid_path: data/*.txt": f"valid_path: not supported yet ({FILES})",
    "valid_path: https://data.org/a.parquet": f"valid_path: not supported yet ({FILES})",
    "valid_path: [a.jsonl, gs://bucket/a.jsonl]": f"valid_path[1]: not supported yet ({FILES})",
    "valid_path: [{path: a.TXT.gz}]": f"valid_path[0].path: not supported yet ({FILES})",
    "embedding_scaling_technique: linear": (
        "embedding_scaling_technique: not supported yet (choose a context_length the model has)"
    ),
}
ACCEPTED = [
    "task: instruction_tuning",
    "task: causal_lm",
    "classifier_config: {label_tokens: [a, b]}",
    "classifier_config: {label_tokens: [a, b, c], best_by: f1, calibrate: false}\ntask: classification",
    "valid_path: [a.jsonl, s3://bucket/b.jsonl, {path: file:///c.jsonl, format: text}]",
    "valid_path: [a.jsonl, {path: b.json, format: instruction, columns: {output: reply}}]",
    "valid_path: [data, s3://bucket/data/, s3://bucket/**/part-*.parquet, 'data/[ab].csv.zst', {path: a.json.gz}]",
    "dataset: {format: messages, valid_fraction: 0.1, on_invalid: drop, over_length: error, train_on: last_turn}",
    "dataset: {load_kwargs: {split: train}}\nvalid_path: [hf://datasets/org/name, org/name]",
    "dataset: {shuffle: false, deduplicate: true, over_length: truncate}",
    f"dataset: {{columns: {COLUMNS}, roles: {{human: user, gpt: assistant}}, min_trained_share: 0}}",
    *(f"dataset: {{format: {name}}}" for name in get_args(RowFormat)),
    f"generation_config: {{prompt_format: {PROMPT_FORMAT}}}",
    "initial_base_model_ckpt_path: models/base",
    "initial_base_model_ckpt_path: s3://bucket/models/base",
    "lora_config: {}\ninitial_adapter_model_ckpt_path: adapters/a",
    "lora_config: {}\ninitial_adapter_model_ckpt_path: s3://bucket/adapters/a",
    "lora_config: {}\ninitial_adapter_model_ckpt_path: {repo_id: a/b, revision: main}",
    "lora_config: {}\nquantization: {bits: 4}",
    "lora_config: {use_dora: true}\nquantization: {bits: 4, type: fp4, double_quantization: false}",
    "lora_config: {}\nquantization: {bits: 8}",
    "liger_kernel: {enabled: false}",
    "liger_kernel: {enabled: true, kwargs: {rope: false, cross_entropy: false}}",
    "attention: eager",
    "attention: varlen",
    "attention: flex",
    "attention: flash_attention_2",
    "flash_attention_2: true",
    "optimizer: {type: adamw, weight_decay: 0.1}",
    "optimizer: {type: adamw_8bit}",
    "optimizer: {type: adafactor}",
    "optimizer: {type: sgd, momentum: 0.9, nesterov: true}",
    "early_stopping: {patience: 2}\nvalid_path: a.jsonl",
    "evaluation: {prompts: [hello]}\nvalid_path: a.jsonl",
    "logger: {provider: wandb, provider_config: {project: bots}}",
    "max_failures: 5",
    "custom_model_tag: a\nnum_data_blocks_per_device: 2\ntrainer_resources: {memory: 1}\nworker_resources: {A10G: 0.1}",
    "deepspeed: {zero_optimization: {stage: 3, offload_optimizer: {device: cpu}, offload_param: {device: cpu}}}",
    "precision: fp16",
]


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_refused(problems: Problems, text: str, message: str) -> None:
    found = problems(text)
    assert message in [line.split(": ", 1)[1] for line in found]


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted(load: Load, text: str) -> None:
    load(text)


def test_what_is_missing_is_refused_beside_other_mistakes(problems: Problems) -> None:
    assert problems("embedding_scaling_technique: linear\nlora_config: {}\ndataset:\n  valid_fractoin: 0.1\n") == [
        "job.yaml:3: embedding_scaling_technique: not supported yet (choose a context_length the model has)",
        "job.yaml:6: dataset.valid_fractoin: unknown key (did you mean valid_fraction?)",
    ]


def test_python_callers_are_refused_too() -> None:
    with pytest.raises(ValidationError, match="embedding_scaling_technique: not supported yet"):
        JobConfig(model_id="meta-llama/Meta-Llama-3-8B", train_path="a.jsonl", embedding_scaling_technique="linear")

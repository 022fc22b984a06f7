"""Loading a job: the published files of the original, and the exact message for each kind of mistake."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmforge.config.base import StrictModel
from llmforge.config.data import ColumnNames, DataSource
from llmforge.config.job import JobConfig, job_json_schema, load_job, parse_job
from llmforge.config.model import HubModel
from llmforge.config.training import AdamW, DeepSpeedFile
from llmforge.config.yaml_file import dump_entry
from llmforge.errors import ConfigError
from tests.config.conftest import Load, Problems

PUBLISHED = """\
model_id: meta-llama/Meta-Llama-3-8B-Instruct # <-- the model
train_path: s3://air-example-data/gsm8k/train.jsonl
valid_path: s3://air-example-data/gsm8k/test.jsonl
context_length: 512
num_devices: 16
num_epochs: 10
train_batch_size_per_device: 16
eval_batch_size_per_device: 16
learning_rate: 1e-4
padding: "longest"
num_checkpoints_to_keep: 1
dataset_size_scaling_factor: 10000
output_dir: /mnt/local_storage
deepspeed:
  config_path: deepspeed_configs/zero_3_offload_optim+param.json
flash_attention_2: True
trainer_resources:
  memory: 53_687_091_200 # 50 GB memory
worker_resources:
  accelerator_type:A10G: 0.001
generation_config:
  prompt_format:
    system: "<|start_header_id|>system<|end_header_id|>\\n\\n{instruction}<|eot_id|>"
    user: "<|start_header_id|>user<|end_header_id|>\\n\\n{instruction}<|eot_id|>"
    assistant: "<|start_header_id|>assistant<|end_header_id|>\\n\\n{instruction}<|eot_id|>"
    trailing_assistant: "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
    bos: "<|begin_of_text|>"
    system_in_user: False
    default_system_message: ""
  stopping_sequences: ["<|end_of_text|>", 128009, [128006, 882]]
lora_config:
  r: 8
  lora_alpha: 16
  lora_dropout: 0.05
  target_modules:
    - q_proj
    - v_proj
    - embed_tokens
    - lm_head
  task_type: "CAUSAL_LM"
  modules_to_save: []
  bias: "none"
  fan_in_fan_out: false
  init_lora_weights: true
"""


def test_a_published_job_loads_unchanged(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    job = load(PUBLISHED, whole=True)
    assert caplog.record_tuples == [
        (
            "llmforge.config.job",
            logging.WARNING,
            "job.yaml:12: dataset_size_scaling_factor: has no effect any more and is left out; remove it",
        )
    ]
    assert job.learning_rate == 1e-4
    assert job.trainer_resources == {"memory": 53687091200}
    assert job.worker_resources == {"accelerator_type:A10G": 0.001}
    assert job.deepspeed == DeepSpeedFile(config_path="deepspeed_configs/zero_3_offload_optim+param.json")
    assert job.method == "lora"
    assert job.lora_config is not None
    assert job.lora_config.target_modules == ("q_proj", "v_proj", "embed_tokens", "lm_head")
    assert job.lora_config.modules_to_save == ()
    assert job.generation_config is not None
    assert job.generation_config.stopping_sequences == ("<|end_of_text|>", 128009, (128006, 882))
    assert job.prompt_format.bos == "<|begin_of_text|>"
    assert job.prompt_format.trailing_assistant.endswith(">\n\n")


def test_the_shortest_job(load: Load) -> None:
    job = load("")
    assert job.method == "full"
    assert job.optimizer == AdamW()
    assert job.train_sources == (DataSource(path="train.jsonl"),)
    assert job.valid_sources == ()
    assert job.model_fields_set == {"model_id", "train_path"}


def test_a_job_travels_as_json_and_as_pickle(load: Load) -> None:
    job = load(PUBLISHED, whole=True)
    assert JobConfig.model_validate_json(job.model_dump_json()) == job
    assert pickle.loads(pickle.dumps(job)) == job


def test_the_names_of_columns_and_roles(load: Load) -> None:
    dataset = load(
        "dataset:\n  columns: {messages: conversations, role: from}\n  roles: {human_1: user, gpt: assistant}\n"
    ).dataset
    assert dataset.columns == ColumnNames(messages="conversations", role="from", content="content")
    assert dataset.roles == {"human_1": "user", "gpt": "assistant"}
    assert dataset.min_trained_share == 0.01
    assert load("", "dataset.columns.content=value").dataset.columns == ColumnNames(content="value")


def test_the_forms_of_paths(load: Load) -> None:
    job = load(
        "valid_path: [a.jsonl, {path: b.jsonl}]\ninitial_base_model_ckpt_path: {repo_id: org/name, revision: main}\n"
        "lora_config: {}\ninitial_adapter_model_ckpt_path: adapters/a\n"
    )
    assert job.valid_sources == (DataSource(path="a.jsonl"), DataSource(path="b.jsonl"))
    assert job.initial_base_model_ckpt_path == HubModel(repo_id="org/name", revision="main")
    assert job.initial_adapter_model_ckpt_path == "adapters/a"


UNKNOWN_KEYS = {
    "learning_rat: 1e-4": "learning_rat: unknown key (did you mean learning_rate?)",
    "lora_config: {lora_alpah: 3}": "lora_config.lora_alpah: unknown key (did you mean lora_alpha?)",
    "lora_config: {seed: 3}": "lora_config.seed: unknown key (did you mean seed at the top level?)",
    "r: 8": "r: unknown key (did you mean lora_config.r?)",
    "qqq: 8": "qqq: unknown key (llmforge schema lists all keys)",
    "early_stopping: {xx: 1}": "early_stopping.xx: unknown key (allowed: patience, min_delta)",
    "optimizer: {betaz: [0, 0]}": "optimizer.betaz: unknown key (did you mean betas?)",
    "optimizer: {type: adamw, momentum: 0}": (
        "optimizer.momentum: unknown key (allowed: type, betas, eps, weight_decay, fused)"
    ),
    "deepspeed: {config_path: a.json, zero: 1}": "deepspeed.zero: unknown key (allowed: config_path)",
    "initial_base_model_ckpt_path: {repo: a}": "initial_base_model_ckpt_path.repo: unknown key (did you mean repo_id?)",
    "valid_path: [{path: a.jsonl, wieght: 1}]": "valid_path[0].wieght: unknown key (did you mean weight?)",
    "dataset: {columns: {mesages: a}}": "dataset.columns.mesages: unknown key (did you mean messages?)",
    "dataset: {columns: {from: role}}": (
        "dataset.columns.from: unknown key (allowed: messages, role, content, weight, train, instruction, input, "
        "output, system, history, prompt, completion, chosen, rejected, label, text, segments)"
    ),
}  # fmt: skip
WRONG_VALUES = {
    "num_devices: two": "num_devices: found the text 'two', allowed is a whole number at least 1 or a mapping",
    'num_devices: "4"': "num_devices: found the text '4', allowed is a whole number at least 1 or a mapping; "
    "remove the quotes",
    "num_devices: 0": "num_devices: found 0, allowed is a whole number at least 1 or a mapping",
    "num_devices: 1.5": "num_devices: found 1.5, allowed is a whole number at least 1 or a mapping",
    "num_devices: true": "num_devices: found true, allowed is a whole number at least 1 or a mapping",
    "num_devices: ": "num_devices: found nothing (null), allowed is a whole number at least 1 or a mapping",
    "num_devices: [1]": "num_devices: found a list of 1, allowed is a whole number at least 1 or a mapping",
    "num_epochs: -1": "num_epochs: found -1, allowed is a whole number at least 1",
    "max_grad_norm: .inf": "max_grad_norm: found a number that is not finite, allowed is a number above 0",
    "learning_rate: 2": "learning_rate: found 2, allowed is a number above 0 and at most 1",
    "max_grad_norm: 0": "max_grad_norm: found 0, allowed is a number above 0",
    "seed: 5_000_000_000": "seed: found 5000000000, allowed is a whole number at least 0 and below 4294967296",
    "eval_first: 1": "eval_first: found 1, allowed is true or false",
    "padding: True": "padding: found true, allowed is longest or max_length",
    "lr_scheduler_type: step": "lr_scheduler_type: found the text 'step', allowed is cosine, linear or constant",
    "output_dir: 5": "output_dir: found 5, allowed is text; put it in quotes",
    "output_dir: ''": "output_dir: found the text '', allowed is text that is not empty",
    "run_name: a b": (
        "run_name: found the text 'a b', allowed is text of at most 128 characters such as support-bot-3 "
        "(pattern ^[A-Za-z0-9][A-Za-z0-9._-]*$)"
    ),
    "dataset: drop": "dataset: found the text 'drop', allowed is a mapping",
    "valid_path: []": "valid_path: found an empty list, allowed is text or a list of at least 1",
    "valid_path: {path: a.jsonl}": "valid_path: found a mapping, allowed is text or a list of at least 1",
    "valid_path: [{weight: 1}]": "valid_path[0].path: required, but missing; Local path or `s3://` uri",
    "lora_config: {lora_dropout: 1}": "lora_config.lora_dropout: found 1, allowed is a number at least 0 and below 1",
    "lora_config: {target_modules: [1]}": "lora_config.target_modules[0]: found 1, allowed is text; put it in quotes",
    "lora_config: {bias: some}": "lora_config.bias: found the text 'some', allowed is none, all or lora_only",
    "lora_config: {task_type: SEQ_CLS}": "lora_config.task_type: found the text 'SEQ_CLS', allowed is CAUSAL_LM",
    "lora_config: {rank_pattern: {a: 0}}": "lora_config.rank_pattern.a: found 0, allowed is a whole number at least 1",
    "lora_config: {init_lora_weights: x}": (
        "lora_config.init_lora_weights: found the text 'x', allowed is true or false or text such as gaussian, olora, "
        "orthogonal, pissa, pissa_niter_16 (pattern ^(gaussian|olora|orthogonal|pissa(_niter_[0-9]+)?)$)"
    ),
    "dataset: {columns: {role: from, content: from}}": (
        "dataset.columns: found the column 'from' for both role and content; give each a column of its own"
    ),
    "dataset: {columns: {content: role}}": (
        "dataset.columns: found the column 'role' for both role and content; give each a column of its own"
    ),
    "dataset: {columns: {role: ''}}": "dataset.columns.role: found the text '', allowed is text that is not empty",
    "dataset: {columns: [messages]}": "dataset.columns: found a list of 1, allowed is a mapping",
    "dataset: {roles: {human: usr}}": (
        "dataset.roles.human: found the text 'usr', allowed is system, user, assistant or tool"
    ),
    "dataset: {min_trained_share: 1}": "dataset.min_trained_share: found 1, allowed is a number at least 0 and below 1",
    "output_dir: # runs": (
        "output_dir: found nothing (null), allowed is text; quote it if it begins with #, which starts a comment"
    ),
    "optimizer: adamw": "optimizer: found the text 'adamw', allowed is a mapping",
    "optimizer: {type: adam}": "optimizer.type: found the text 'adam', allowed: adamw, adamw_8bit, adafactor, sgd",
    "optimizer: {betas: [0.9]}": "optimizer.betas: found a list of 1, allowed is a list of 2",
    "optimizer: {betas: [0.9, 1.0]}": "optimizer.betas[1]: found 1.0, allowed is a number at least 0 and below 1",
    "deepspeed: zero_3.json": "deepspeed: found the text 'zero_3.json', allowed is a mapping",
    "deepspeed: {a: [.inf]}": "deepspeed.a: found a number that is not finite, which JSON cannot hold",
    "worker_resources: {GPU: -1}": "worker_resources.GPU: found -1, allowed is a number at least 0",
    "model_id: s3://bucket/model": (
        "model_id: found the uri 's3://bucket/model', allowed is a Hugging Face id (owner/name) or a local folder; "
        "for weights elsewhere use initial_base_model_ckpt_path"
    ),
    "generation_config: {prompt_format: {system: '{instruction}', user: {instruction}, assistant: '{instruction}'}}": (
        'generation_config.prompt_format.user: found a mapping, allowed is text; quote this value: "{instruction}"'
    ),
    "generation_config: {stopping_sequences: [{x}]}": (
        "generation_config.stopping_sequences[0]: found a mapping, allowed is text or a whole number or a list; "
        'quote this value: "{x}"'
    ),
    "generation_config: {prompt_format: {system: '{instruction}', user: '{x}{instruction}'}}": (
        "generation_config.prompt_format.user: found the unknown placeholder {x} in '{x}{instruction}', allowed: "
        "{instruction} and {system}; a literal brace is written {{ or }}"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), (UNKNOWN_KEYS | WRONG_VALUES).items())
def test_what_is_said_of_a_mistake(problems: Problems, text: str, message: str) -> None:
    key = text.split(":")[0]
    required = {"model_id": "model_id: meta-llama/Meta-Llama-3-8B", "train_path": "train_path: train.jsonl"}
    lines = [line for name, line in required.items() if name != key]
    found = problems("\n".join([*lines, text]), whole=True)
    assert f"job.yaml:{len(lines) + 1}: {message}" in found


def test_a_missing_key_is_named_at_the_section_it_belongs_to(problems: Problems) -> None:
    assert problems("seed: 1\n", whole=True) == [
        "job.yaml:1: model_id: required, but missing; "
        "Hugging Face id or local folder: gives architecture, tokenizer and the defaults of the family",
        "job.yaml:1: train_path: required, but missing; "
        "Training data: a uri, a list of uris, or a list of `{path, weight, format, columns}`",
    ]
    text = "generation_config:\n  prompt_format:\n    system: '{instruction}'\n    user: '{instruction}'\n"
    assert problems(text) == [
        "job.yaml:4: generation_config.prompt_format.assistant: required, but missing; Template of an assistant "
        "message, with `{instruction}`; its terminator (such as `<|eot_id|>`) is trained"
    ]


def test_all_problems_at_once_sorted_by_line(problems: Problems) -> None:
    text = (
        "model_id: meta-llama/Meta-Llama-3-8B\n"
        "train_path: train.jsonl\n"
        "learning_rat: 1e-4\n"
        "early_stopping: {patience: 2}\n"  # a rule across sections
        "num_epochs: 0\n"
        "embedding_scaling_technique: linear\n"  # not supported yet
        "num_epochs: 0\n"  # a duplicate
        "hub_token: hf_abcdefghijklmnopqrstuvwxyz\n"  # a secret
    )
    found = problems(text, "lora_config.rr=3", "nothing", whole=True)
    assert [line.split(" ")[0] + " " + line.split(" ")[1] for line in found] == [
        "job.yaml:3: learning_rat:",
        "job.yaml:4: early_stopping:",
        "job.yaml:6: embedding_scaling_technique:",
        "job.yaml:7: num_epochs:",
        "job.yaml:7: num_epochs:",
        "job.yaml:8: hub_token:",
        "job.yaml:8: hub_token:",
        "command line:",
        "command line:",
    ]


def test_rules_do_not_complain_about_keys_that_are_wrong_anyway(problems: Problems) -> None:
    assert problems("early_stopping: {}\nvalid_path: 3\n") == [
        "job.yaml:4: valid_path: found 3, allowed is text or a list of at least 1; put it in quotes"
    ]
    assert len(problems("train_path: train.jsonl\n", whole=True)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "job.yaml:1: found an empty file, allowed is a job: lines of `key: value` (see docs/job-file.md)"),
        (b"- a\n", "job.yaml:1: found no mapping, allowed is a job: lines of `key: value` (see docs/job-file.md)"),
        (b"model_id: \xff", "job.yaml: not UTF-8 at byte 10; save it as UTF-8"),
    ],
)
def test_files_that_are_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_job("job.yaml")
    assert str(caught.value) == message


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("no/such.yaml")
    assert str(caught.value) == (
        "no/such.yaml: cannot be read: No such file or directory; check the path of the job file"
    )


def test_a_byte_order_mark_and_windows_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel_id: meta-llama/Meta-Llama-3-8B\r\ntrain_path: a.jsonl\r\n")
    assert load_job(path).train_path == "a.jsonl"


def _all_keys() -> list[str]:
    schema = job_json_schema()
    return sorted({key for model in [schema, *schema["$defs"].values()] for key in model.get("properties", {})})


_KEYS = st.sampled_from([*_all_keys(), "unknown", "inline", "uri", "config_path"])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["", "adamw", "auto", "{x}", "a.jsonl"])
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=8
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_stands_in_a_job_is_accepted_or_refused_in_our_words(data: dict[str, Any]) -> None:
    required = {"model_id": "meta-llama/Meta-Llama-3-8B", "train_path": "train.jsonl"}
    text = "".join(dump_entry(key, value) for key, value in (required | data).items())
    try:
        job = parse_job(text, "job.yaml").job
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line is not None
            assert "nput should" not in problem.message
            assert "any value" not in problem.message
    else:
        assert JobConfig.model_validate_json(job.model_dump_json()) == job


def test_the_json_schema_describes_every_key() -> None:
    schema = job_json_schema()
    json.dumps(schema)
    assert set(schema["required"]) == {"model_id", "train_path"}
    assert schema["additionalProperties"] is False
    for model in [schema, *(node for node in schema["$defs"].values() if "properties" in node)]:
        for key, node in model["properties"].items():
            assert node.get("description"), key
            assert "\n" not in node["description"]


def test_every_key_has_one_docstring() -> None:
    for section in StrictModel.__subclasses__():
        if section.__module__.startswith("llmforge.config"):
            assert section.__doc__
            for name, field in section.model_fields.items():
                assert field.description, f"{section.__name__}.{name}"

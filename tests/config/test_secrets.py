"""Literal secrets are found wherever they stand, and never shown."""

from __future__ import annotations

import pytest

from llmforge.config.secrets import find_secrets, redact
from tests.config.conftest import Load, Problems

ADVICE = "a job is copied into logs and checkpoints: remove it and set it in the environment of the cluster"
# Put together here, so that no scanner takes this file for a leak.
AWS, HF, OPENAI, GITHUB = "AKIA" + "IOSFODNN7EXAMPLE", "hf_" + "a1B2" * 8, "sk-" + "proj-1234567890", "ghp_" + "x1" * 18


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (AWS, "an AWS access key"),
        (f"key={AWS} region=x", "an AWS access key"),
        (HF, "a Hugging Face token"),
        (OPENAI, "an API key"),
        (GITHUB, "a GitHub token"),
        ("https://user:pass@host/path", "a password in a uri"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    ],
)
def test_what_looks_like_a_secret(value: str, name: str) -> None:
    (finding,) = find_secrets({"a": [{"b": value}]})
    assert finding.path == ("a", 0, "b")
    assert finding.message == f"found {name}, allowed is no literal secret; {ADVICE}"
    assert redact(value) != value


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "password", "api_key", "WANDB_API_KEY", "secret", "aws_secret_access_key"]
)
def test_keys_that_name_one(key: str) -> None:
    (finding,) = find_secrets({"logger": {key: "abc"}})
    assert finding.path == ("logger", key)
    assert finding.message == f"found a literal value under a key that names a secret, allowed is none; {ADVICE}"


@pytest.mark.parametrize(
    "data",
    [
        {"token": None},
        {"load_kwargs": {"token": True}},
        {"label_tokens": ["safe", "unsafe"], "max_tokens": 5, "secretary": "x"},
        {"train_path": "data/hf_datasets.jsonl"},
        {"model_id": "org/task-model-instruct-2024-01-01", "output_dir": "s3://bucket/disk-12345678"},
        {"model_id": "org/sk-learn-tutorial"},
        {"user": "https://example.org/a:b@c"},
    ],
)
def test_what_is_none(data: object) -> None:
    assert find_secrets(data) == []


def test_a_secret_is_refused_and_not_repeated(problems: Problems) -> None:
    text = f"run_name: {HF}\nnum_devices: {AWS}\nhub_token: {HF}\ngeneration_config: {{stopping_sequences: {OPENAI}}}\n"
    found = problems(text, f"output_dir={GITHUB}")
    assert sum("allowed is no literal secret" in line for line in found) == 5
    assert f"job.yaml:3: run_name: found a Hugging Face token, allowed is no literal secret; {ADVICE}" in found
    assert not any(secret in line for line in found for secret in (AWS, HF, OPENAI, GITHUB))


def test_a_job_without_secrets_loads(load: Load) -> None:
    load("output_dir: s3://bucket/prefix\n")

"""The resolved job as text: complete, marked, and equal when read back."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmforge.config.job import JobConfig
from llmforge.config.job_memory import ModelSizes
from llmforge.config.job_yaml import job_from_yaml, job_to_yaml
from llmforge.config.keys import SECTIONS, JobKeys
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.config.sizing import DataSizes, size_job
from tests.config.conftest import Load
from tests.config.test_job import PUBLISHED

FACTS = JobFacts(has_gpu=True, started_at=datetime(2026, 1, 2), model=ModelSizes(num_stored=10**9))


@pytest.mark.parametrize(
    "text", [PUBLISHED.replace("  config_path: ", "  zero: "), "model_id: a-chatml-b\ntrain_path: a.jsonl\n"]
)
def test_a_resolved_job_is_read_back_equal(load: Load, text: str) -> None:
    submitted = load(text, whole=True)
    resolved = size_job(resolve_job(submitted, FACTS), DataSizes(100, 200, 50))
    assert job_from_yaml(job_to_yaml(resolved, submitted)) == resolved
    assert job_from_yaml(job_to_yaml(resolved)) == resolved


def test_every_key_stands_there_and_defaults_are_marked(load: Load) -> None:
    submitted = load("learning_rate: 1e-4\nlora_config: {r: 4}\ndataset: {shuffle: false}\ndeepspeed: {a: {b: 1}}\n")
    lines = job_to_yaml(resolve_job(submitted, FACTS), submitted).splitlines()
    keys = [line.split(":")[0] for line in lines if line and line[0] not in " #"]
    assert keys == [key for section in SECTIONS for key in section.model_fields]
    assert set(keys) == set(JobKeys.model_fields)
    assert "learning_rate: 0.0001" in lines
    assert "seed: 42  # default" in lines
    assert "valid_path: null  # default" in lines
    start = lines.index("lora_config:")
    assert lines[start + 1 : start + 3] == ["  r: 4", "  lora_alpha: 8  # default"]
    assert "  shuffle: false" in lines
    assert "  format: auto  # default" in lines
    assert lines[lines.index("deepspeed:") + 1] == "  a: {b: 1}"
    assert "checkpoint_and_evaluation_frequency:  # default" in lines
    assert "  unit: epochs" in lines


def test_line_breaks_stay_escaped(load: Load) -> None:
    text = job_to_yaml(resolve_job(load(""), FACTS))
    assert r'user: "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"' in text
    assert "# default" not in text


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "{" not in text and "}" not in text))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_template_survives(literal: str) -> None:
    prompt_format = dict.fromkeys(["system", "user", "assistant"], literal + "{instruction}" + literal)
    job = JobConfig.model_validate(
        {
            "model_id": "a",
            "train_path": "a.jsonl",
            "generation_config": {
                "prompt_format": {**prompt_format, "bos": literal},
                "stopping_sequences": ["x" + literal],
            },
        }
    )
    assert job_from_yaml(job_to_yaml(job)) == job

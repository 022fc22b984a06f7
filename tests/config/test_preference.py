"""What a job that learns from pairs gets where it leaves something open."""

from __future__ import annotations

from datetime import datetime

import pytest

from llmforge.config.job import JobConfig
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.config.training import PreferenceTuningConfig

KEYS = {
    "model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "train_path": "pairs.jsonl",
    "accelerator": "cpu",
}


def resolved(**keys: object) -> JobConfig:
    job = JobConfig.model_validate_json(JobConfig.model_validate({**KEYS, **keys}).model_dump_json())
    return resolve_job(job, JobFacts(has_gpu=False, started_at=datetime(2026, 1, 1)))


def config_of(**keys: object) -> PreferenceTuningConfig:
    job = resolved(**keys)
    assert job.is_paired != job.is_rated
    assert job.preference_tuning_config is not None
    # What travels to workers is judged again there.
    assert JobConfig.model_validate_json(job.model_dump_json()) == job
    return job.preference_tuning_config


@pytest.mark.parametrize(
    ("given", "beta", "gamma"),
    [
        ({}, 0.1, None),
        ({"loss": "ipo", "beta": 0.3}, 0.3, None),
        ({"loss": "simpo"}, 2.0, 1.0),
        ({"loss": "simpo", "gamma": 0.0}, 2.0, 0.0),
        ({"loss": "orpo"}, 0.1, None),
        ({"loss": "kto", "desirable_weight": 1.3}, 0.1, None),
    ],
)
def test_strength_and_margin(given: dict[str, object], beta: float, gamma: float | None) -> None:
    config = config_of(preference_tuning_config=given)
    assert (config.beta, config.gamma) == (beta, gamma)


@pytest.mark.parametrize(
    ("keys", "reference"),
    [
        ({"lora_config": {}}, "adapter_off"),
        ({}, "precomputed"),
        ({"lora_config": {}, "initial_adapter_model_ckpt_path": "adapter"}, "precomputed"),
        ({"lora_config": {"init_lora_weights": "pissa"}}, "precomputed"),
        ({"lora_config": {"bias": "all"}}, "precomputed"),
    ],
)
def test_where_the_reference_comes_from(
    keys: dict[str, object], reference: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "llmforge.config.resolve"):
        assert config_of(preference_tuning_config={}, **keys).reference == reference
    assert "reference model: " in caplog.text


def test_workers_of_its_own_compute_beforehand() -> None:
    given = {"logprob_processor_scaling_config": {"concurrency": 2}}
    assert config_of(preference_tuning_config=given, lora_config={}).reference == "precomputed"


def test_kto_rates_single_answers_and_has_a_reference_model() -> None:
    job = resolved(preference_tuning_config={"loss": "kto"}, lora_config={})
    assert (job.is_rated, job.is_paired, job.task) == (True, False, "preference_tuning")
    assert job.preference_tuning_config is not None
    assert job.preference_tuning_config.reference == "adapter_off"


def test_a_loss_without_a_reference_model_gets_none() -> None:
    config = config_of(preference_tuning_config={"loss": "orpo"}, lora_config={})
    assert (config.needs_reference, config.reference) == (False, "auto")

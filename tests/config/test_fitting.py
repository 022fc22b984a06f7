"""Settings that would fit where a job did not."""

import pytest

from llmforge.config.fitting import settings_that_fit
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import UNKNOWN_MODEL, ModelSizes, SequenceSizes, largest_batch, plan_job
from llmforge.config.memory_plan import GIB
from llmforge.config.model_shape import read_model_shape

MODEL = ModelSizes(
    read_model_shape(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        }
    ),
    hidden_size=2048,
)
SEQUENCES = SequenceSizes(longest_tokens=4096, most_trained=1500)


def build(**settings: object) -> JobConfig:
    return JobConfig.model_validate(
        {
            "model_id": "meta-llama/Llama-3.2-1B",
            "train_path": "a.jsonl",
            "precision": "bf16",
            "accelerator": "gpu",
            "context_length": 4096,
            "train_batch_size_per_device": 8,
            "deepspeed": {"zero_optimization": {"stage": 1}},
        }
        | settings
    )


def planned_bytes(job: JobConfig) -> int:
    assert job.train_batch_size_per_device is not None
    plan = plan_job(job, MODEL, largest_batch(job, SEQUENCES, job.train_batch_size_per_device))
    assert plan is not None
    return plan.total_bytes


def test_each_setting_that_does_by_itself() -> None:
    job = build(gradient_checkpointing=False)
    found = settings_that_fit(job, MODEL, SEQUENCES, 50 * GIB)
    assert found == [
        "train_batch_size_per_device: 2 with gradient_accumulation_steps: 4",
        "gradient_checkpointing: true",
    ]
    smaller = build(gradient_checkpointing=False, train_batch_size_per_device=4, gradient_accumulation_steps=2)
    assert planned_bytes(smaller) > 0.9 * 50 * GIB  # so half the sequences would not have done


def test_higher_stages_where_there_are_more_devices() -> None:
    job = build(num_devices=8)
    assert settings_that_fit(job, MODEL, SEQUENCES, int(planned_bytes(job) * 0.8)) == [
        "deepspeed.zero_optimization.stage: 2"
    ]


def test_a_plan_that_was_too_low_is_stretched() -> None:
    """It said that 24 GiB do, and they did not: so what is named must take clearly less than it."""
    job = build(train_batch_size_per_device=4)
    planned = planned_bytes(job)
    found = settings_that_fit(job, MODEL, SEQUENCES, 2 * planned)
    offloaded = build(
        train_batch_size_per_device=4,
        deepspeed={"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
    )
    assert planned_bytes(offloaded) <= 0.9 * planned
    assert found == ["deepspeed.zero_optimization.offload_optimizer: {device: cpu}"]


def test_all_together_where_none_does_alone() -> None:
    job = build(gradient_checkpointing=False, num_devices=4)
    assert settings_that_fit(job, MODEL, SEQUENCES, 9 * GIB) == [
        "train_batch_size_per_device: 1 with gradient_accumulation_steps: 8 and gradient_checkpointing: true and "
        "deepspeed.zero_optimization.stage: 3 and deepspeed.zero_optimization.offload_optimizer: {device: cpu}"
    ]


@pytest.mark.parametrize(("model", "gib"), [(UNKNOWN_MODEL, 80), (MODEL, 1)])
def test_nothing_is_promised_that_is_not_known(model: ModelSizes, gib: int) -> None:
    assert settings_that_fit(build(), model, SEQUENCES, gib * GIB) == []

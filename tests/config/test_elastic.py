"""A job whose number of devices follows the cluster: its steps are those of the most, its plans for the fewest."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest

from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.demand import describe_shortage
from llmforge.config.job_memory import ModelSizes, SequenceSizes, largest_batch, plan_job
from llmforge.config.resolve import JobFacts, job_digest, resolve_job
from llmforge.config.sizing import DataSizes, global_batch_size, size_job
from tests.config.conftest import Load, Problems

FACTS = JobFacts(has_gpu=True, started_at=datetime(2026, 1, 2), model=ModelSizes(num_stored=10**9))
SIZES = DataSizes(length_p95=300, longest_tokens=500, num_train_samples=1000, model_context_length=8192)
BATCH = "train_batch_size_per_device: 2\ngradient_accumulation_steps: 3\n"
DEVICES = "num_devices: {min: 2, max: 8}\n"


def test_a_number_is_both_bounds(load: Load) -> None:
    fixed, elastic = load("num_devices: 4\n"), load(DEVICES)
    assert (fixed.min_devices, fixed.max_devices, fixed.devices_text) == (4, 4, "4")
    assert (elastic.min_devices, elastic.max_devices, elastic.devices_text) == (2, 8, "2 to 8")
    assert elastic.resize_interval_seconds == 60
    assert load("num_devices: {min: 3, max: 3, resize_interval_seconds: 5}\n").devices_text == "3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{min: 4, max: 2}", "num_devices.min: found 4, allowed is at most max: 2"),
        ("{min: 0, max: 2}", "num_devices.min: found 0, allowed is a whole number at least 1"),
        ("{max: 2}", "num_devices.min: required, but missing; With fewer it waits"),
        ("{min: 1, max: 2, most: 3}", "num_devices.most: unknown key (allowed: min, max, resize_interval_seconds)"),
    ],
)
def test_mistakes(problems: Problems, text: str, message: str) -> None:
    assert problems(f"num_devices: {text}\n") == [f"job.yaml:3: {message}"]


def test_a_step_takes_the_sequences_of_the_most_devices(load: Load) -> None:
    elastic, fixed = (size_job(resolve_job(load(BATCH + text), FACTS), SIZES) for text in (DEVICES, "num_devices: 8\n"))
    assert global_batch_size(elastic) == global_batch_size(fixed) == 48
    assert (elastic.max_steps, elastic.num_epochs) == (fixed.max_steps, fixed.num_epochs)


@pytest.mark.parametrize(
    ("num_workers", "num_micro_batches", "batch"), [(8, 3, 48), (4, 6, 48), (5, 5, 50), (7, 4, 56), (2, 12, 48)]
)
def test_deepspeed_with_any_number_of_workers(load: Load, num_workers: int, num_micro_batches: int, batch: int) -> None:
    """The user's numbers are those of all devices."""
    section = "deepspeed: {train_batch_size: 48, gradient_accumulation_steps: auto}\n"
    config = deepspeed_config_of(resolve_job(load(BATCH + DEVICES + section), FACTS), 64, num_workers)
    found = [config[f"train_{name}"] for name in ("micro_batch_size_per_gpu", "batch_size")]
    assert (found, config["gradient_accumulation_steps"]) == ([2, batch], num_micro_batches)


def test_memory_is_planned_for_the_fewest_devices(load: Load) -> None:
    sequences = SequenceSizes(500, 500)
    plans = []
    for devices in (DEVICES, "num_devices: 2\n", "num_devices: 8\n"):
        job = size_job(
            resolve_job(load(f"{BATCH}{devices}deepspeed: {{zero_optimization: {{stage: 2}}}}\n"), FACTS), SIZES
        )
        plan = plan_job(job, FACTS.model, largest_batch(job, sequences, 2))
        assert plan is not None
        plans.append(plan.total_bytes)
    assert plans[0] == plans[1] > plans[2]


def test_the_cluster_must_have_the_fewest(load: Load) -> None:
    job = load(f"{DEVICES}accelerator: gpu\n")
    assert describe_shortage(job, [{"GPU": 1.0}, {"GPU": 1.0}]) is None
    assert "GPU: 2 x 1 = 2 needed, the cluster has 1" in (describe_shortage(job, [{"GPU": 1.0}]) or "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            f"{DEVICES}trainer_resources: {{memory: 5e9, CPU: 2}}\nworker_resources: {{CPU: 4}}\n",
            "2 to 8 workers asks for memory 5e+09; ",
        ),
        ("num_devices: 2\ntrainer_resources: {CPU: 2}\nworker_resources: {CPU: 2}\n", None),
        ("trainer_resources: {CPU: 2}\n", None),
    ],
)
def test_what_is_meant_for_the_first_worker(
    load: Load, caplog: pytest.LogCaptureFixture, text: str, told: str | None
) -> None:
    with caplog.at_level(logging.INFO, logger="llmforge"):
        resolve_job(load(text), FACTS)
    lines = [line for line in caplog.messages if line.startswith("trainer_resources: ")]
    assert lines == ([] if told is None else lines[:1])
    assert told is None or lines[0].startswith(
        f"trainer_resources: each of the {told}Ray Train gives all workers the same"
    )


def test_how_long_a_run_waits_makes_it_no_other_job(load: Load) -> None:
    assert job_digest(load("resource_timeout_seconds: 60\n")) == job_digest(load(""))

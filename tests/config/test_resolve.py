"""Defaults that depend on the cluster, the model and the measured data."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.config.families import find_family
from llmforge.config.job import JobConfig
from llmforge.config.job_memory import ModelSizes, SequenceSizes, trained_model
from llmforge.config.model_shape import read_model_shape
from llmforge.config.resolve import JobFacts, job_digest, resolve_job
from llmforge.config.sizing import DataSizes, global_batch_size, measured_context_length, size_job, steps_per_epoch
from llmforge.errors import ConfigError
from tests.config.conftest import Load

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
STARTED = datetime(2026, 3, 4, 5, 6, 7)
CPU = JobFacts(has_gpu=False, started_at=STARTED)
GPU = JobFacts(
    has_gpu=True,
    started_at=STARTED,
    model_context_length=8192,
    model=ModelSizes(num_stored=8_000_000_000, hidden_size=4096),
)
SIZES = DataSizes(length_p95=300, longest_tokens=5000, num_train_samples=1000, model_context_length=8192)


def _resolved(job: JobConfig, facts: JobFacts = CPU) -> dict[str, Any]:
    return resolve_job(job, facts).model_dump(mode="json")


def test_a_full_job_on_a_cpu(load: Load) -> None:
    job = _resolved(load(""))
    assert job["task"] == "instruction_tuning"
    assert job["accelerator"] == "cpu"
    assert job["precision"] == "fp32"
    assert job["attention"] == "auto"  # the workers choose, on their devices
    assert (job["packing"], job["padding"]) == (True, None)
    assert job["learning_rate"] == 1e-5
    assert job["train_batch_size_per_device"] is None
    assert job["optimizer"]["fused"] is True
    assert job["deepspeed"] == {"zero_optimization": {"stage": 0}}
    assert job["context_length"] is None


def test_a_lora_job_on_gpus(load: Load) -> None:
    resources = "worker_resources: {'accelerator_type:A100-80G': 0.001}"
    facts = replace(GPU, model=ModelSizes(read_model_shape(LLAMA_8B)))
    job = _resolved(load(f"lora_config: {{r: 4}}\nnum_devices: 8\n{resources}\n"), facts)
    assert job["accelerator"] == "gpu"
    assert job["precision"] == "bf16"
    assert job["learning_rate"] == 1e-4
    assert job["optimizer"]["fused"] is True
    assert job["lora_config"]["target_modules"][:2] == ["q_proj", "k_proj"]
    assert job["deepspeed"] == {"zero_optimization": {"stage": 1}}  # the lowest in bf16


def test_the_family_gives_format_and_stops(load: Load) -> None:
    family = find_family("Meta-Llama-3-8B")
    assert family is not None
    job = resolve_job(load(""), CPU)
    assert job.prompt_format == family.prompt_format
    assert job.generation_config is not None
    assert job.generation_config.stopping_sequences == ("<|eot_id|>", "<|end_of_text|>")


def test_a_family_that_is_refused_needs_a_format(load: Load) -> None:
    update = {"model_id": "ibm-granite/granite-3.1-8b-instruct"}
    with pytest.raises(ConfigError) as caught:
        resolve_job(load("").model_copy(update=update), CPU)
    assert str(caught.value) == (
        "model_id: found ibm-granite/granite-3.1-8b-instruct, for which no prompt format is offered: its chat template "
        "writes today's date into the system message of a conversation that has none; write the format to train and to "
        "serve with in generation_config.prompt_format (docs/prompt-formats.md)"
    )
    own = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}'}"
    with_format = load(f"generation_config: {{prompt_format: {own}}}\n")
    assert resolve_job(with_format.model_copy(update=update), CPU).prompt_format == with_format.prompt_format


def test_a_format_of_its_own_does_not_get_the_familys_stops(load: Load) -> None:
    own = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}'}"
    config = resolve_job(
        load(f"generation_config: {{prompt_format: {own}, temperature: 1.0}}\n"), CPU
    ).generation_config
    assert config is not None
    assert config.stopping_sequences == ()
    assert config.temperature == 1.0


@pytest.mark.parametrize(
    ("text", "packing", "padding"),
    [
        ("", True, None),
        ("packing: true", True, None),
        ("packing: false", False, "longest"),
        ("padding: max_length", False, "max_length"),
        ("packing: false\npadding: longest", False, "longest"),
    ],
)
def test_packing_and_padding(load: Load, text: str, packing: bool, padding: str | None) -> None:
    job = resolve_job(load(text), CPU)
    assert (job.packing, job.padding) == (packing, padding)


def test_what_the_job_says_is_kept(load: Load) -> None:
    text = (
        "task: causal_lm\naccelerator: cpu\nprecision: bf16\nattention: eager\nlearning_rate: 3e-4\n"
        "train_batch_size_per_device: 9\nrun_name: mine\nlora_config: {target_modules: all-linear}\n"
        "optimizer: {fused: false}\ndeepspeed: {zero_optimization: {stage: 1}}\n"
    )
    submitted = load(text)
    resolved = resolve_job(submitted, GPU)
    for key in submitted.model_fields_set:
        assert getattr(resolved, key) == getattr(submitted, key)


def test_adafactor_is_not_sharded(load: Load) -> None:
    """Neither the number of devices nor an unknown model raise the stage."""
    assert _resolved(load("optimizer: {type: adafactor}\nnum_devices: 4\n"))["deepspeed"] == {
        "zero_optimization": {"stage": 0}
    }


@pytest.mark.parametrize(
    ("optimizer", "num_bytes"),
    [
        ("{type: adamw}", 8),
        ("{type: adamw_8bit}", 2.03125),
        ("{type: adafactor}", 0),
        ("{type: sgd}", 0),
        ("{type: sgd, momentum: 0.9}", 4),
    ],
)
def test_memory_of_each_optimizer(load: Load, optimizer: str, num_bytes: float) -> None:
    trained = trained_model(resolve_job(load(f"optimizer: {optimizer}\n"), CPU), ModelSizes(num_stored=1000))
    assert trained is not None
    assert trained.optimizer.num_bytes == num_bytes


@pytest.mark.parametrize(
    ("text", "facts", "why"),
    [
        ("", GPU, "precision bf16 needs ZeRO stage 1"),
        ("deepspeed: {zero_optimization: {stage: 2}}\n", CPU, "the deepspeed section asks for ZeRO stage 2"),
    ],
)
def test_adafactor_where_deepspeed_flattens(load: Load, text: str, facts: JobFacts, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_job(load(f"optimizer: {{type: adafactor}}\n{text}"), facts)
    assert str(caught.value) == (
        f"optimizer.type: found adafactor, but {why}; allowed: stage 0 and precision fp32 (from stage 1 on rows and "
        "columns of a matrix are lost, and results would depend on num_devices); use adamw_8bit, or adamw with "
        "offload_optimizer"
    )


def test_resolving_is_pure_and_idempotent(load: Load) -> None:
    job = load("lora_config: {}\nnum_devices: 2\n")
    before = job.model_dump_json()
    resolved = resolve_job(job, GPU)
    assert job.model_dump_json() == before
    assert resolve_job(job, GPU) == resolved
    assert resolve_job(resolved, GPU) == resolved
    assert JobConfig.model_validate_json(resolved.model_dump_json()) == resolved


def test_precision_follows_an_explicit_deepspeed_section(load: Load) -> None:
    assert _resolved(load("deepspeed: {bf16: {enabled: true}}\n"))["precision"] == "bf16"
    assert _resolved(load("deepspeed: {bf16: {enabled: auto}}\n"))["precision"] == "fp32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accelerator: gpu", "accelerator: found gpu, but the cluster has none; choose auto or cpu, or add a GPU"),
        ("precision: fp16", "precision: found fp16, allowed on CPUs: bf16, fp32 or auto"),
        (
            "lora_config: {}\nquantization: {bits: 8}\ndeepspeed: {zero_optimization: {stage: 3}}",
            "deepspeed.zero_optimization.stage: found 3, allowed with quantization in 8 bits: 0 to 2 (each device "
            "keeps all of its 8 bit weights); use bits: 4, or a lower stage",
        ),
        (
            "context_length: 9000",
            "context_length: found 9000, allowed is at most 8192, the longest sequence of meta-llama/Meta-Llama-3-8B",
        ),
    ],
)
def test_what_cannot_work_here(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_job(load(text), replace(CPU, model_context_length=8192))
    assert str(caught.value) == message


def test_the_run_name(load: Load) -> None:
    job = load("")
    assert resolve_job(job, CPU).run_name == f"Meta-Llama-3-8B-instruction_tuning-20260304-050607-{job_digest(job)}"
    tagged = load("custom_model_tag: support-bot\ntask: causal_lm\n")
    assert resolve_job(tagged, CPU).run_name == f"support-bot-causal_lm-20260304-050607-{job_digest(tagged)}"


def test_the_digest_names_the_submitted_job(load: Load) -> None:
    job = load("seed: 1\n")
    assert job_digest(job) == job_digest(load("seed: 1\nrun_name: other\n"))
    assert job_digest(job) == job_digest(load("seed: 1\ndeepspeed: {config_path: a.json}\n"))
    assert job_digest(job) != job_digest(load("seed: 2\n"))


def test_choices_are_logged_with_their_reason(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llmforge"):
        size_job(resolve_job(load("num_devices: 2\n"), CPU), SIZES)
    assert caplog.messages == [
        "accelerator: cpu, since the cluster has no GPU",
        "precision: fp32, the default on CPUs",
        "task: instruction_tuning, only assistant turns carry loss (the closed original's default was causal_lm)",
        "learning_rate: 1e-05, the default without lora_config",
        "ZeRO stage 2: the size of the model is not known",
        "context_length: 512; 95 of 100 examples have at most 300 tokens, rounded up to a power of two, "
        "the longest has 5000",
        "train_batch_size_per_device: 16, the most that is taken unasked",
        "num_epochs: 4, for at least 100 steps (min_update_steps), of which an epoch has 32",
        "max_steps: 128, all steps of 4 epochs; an epoch has 32, of 32 sequences each",
    ]


def test_what_the_job_says_is_not_explained(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "accelerator: cpu\nprecision: fp32\ntask: causal_lm\nlearning_rate: 1e-3\ncontext_length: 64\n"
        "train_batch_size_per_device: 2\nnum_epochs: 3\nmax_steps: 9\n"
    )
    with caplog.at_level(logging.INFO, logger="llmforge"):
        size_job(resolve_job(load(text), CPU), SIZES)
    assert caplog.messages == ["ZeRO stage 0: one device has nothing to share"]


@pytest.mark.parametrize(
    ("text", "section", "message"),
    [
        ("num_devices: 1", 1, "ZeRO stage 1: one device has nothing to share, and 16 bits need stage 1"),
        ("num_devices: 2", 2, "ZeRO stage 2: the memory of the devices is not known"),
        ("deepspeed: {zero_optimization: {stage: 3}}", 3, "ZeRO stage 3: from the deepspeed section"),
        ("deepspeed: {zero_optimization: {stage: 0}}", 0, "ZeRO stage 1: instead of 0, since bf16 needs it"),
        (
            "num_devices: 8\nworker_resources: {'accelerator_type:A100-80G': 1}",
            2,
            "ZeRO stage 2: 30.7 GiB of model state per device fit into 48.0 GiB",  # 33e9 B: 16e9 + 128e9 / 8 + 1e9
        ),
    ],
)
def test_the_zero_stage_that_runs_is_named(
    load: Load, caplog: pytest.LogCaptureFixture, text: str, section: int, message: str
) -> None:
    with caplog.at_level(logging.INFO, logger="llmforge"):
        job = resolve_job(load(text), GPU)
    assert [line for line in caplog.messages if line.startswith("ZeRO")] == [message]
    assert isinstance(job.deepspeed, dict)
    assert job.deepspeed["zero_optimization"] == {"stage": section}


def test_what_cannot_be_served_is_said(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    resolve_job(load("lora_config: {use_dora: true}\n"), CPU)
    assert caplog.messages == [
        "lora_config: with use_dora the adapter cannot be served beside the base model by vLLM and its kind; "
        "merge it into the weights to serve it, or remove the key"
    ]


@pytest.mark.parametrize(
    ("section", "batch_size"),
    [
        ("{train_micro_batch_size_per_gpu: 3}", 3),
        ("{train_batch_size: 24}", 6),
        ("{train_batch_size: auto, train_micro_batch_size_per_gpu: auto}", None),
    ],
)
def test_the_deepspeed_section_may_say_the_batch(load: Load, section: str, batch_size: int | None) -> None:
    job = resolve_job(load(f"num_devices: 2\ngradient_accumulation_steps: 2\ndeepspeed: {section}\n"), CPU)
    assert job.train_batch_size_per_device == batch_size


@pytest.mark.parametrize(
    ("text", "num_samples", "longest", "chosen", "reason"),
    [
        ("", 1000, 512, 16, ", the most that is taken unasked"),
        ("", 1000, 2048, 8, "; 16 would hold 32,768 tokens, more than 16,384"),
        ("", 1000, 20_000, 1, "; 2 would hold 40,000 tokens, more than 16,384"),
        ("", 399, 512, 16, ", the most that is taken unasked"),  # 25 steps
        ("", 384, 512, 8, "; 16 would leave an epoch 24 steps, fewer than 25"),
        (
            "num_devices: 2\ngradient_accumulation_steps: 2",
            384,
            512,
            2,
            "; 4 would leave an epoch 24 steps, fewer than 25",
        ),
        ("", 1, 10, 1, "; 2 would leave an epoch 1 steps, fewer than 25"),
        (
            "worker_resources: {'accelerator_type:L4': 1}\nlora_config: {}\nprecision: bf16",
            1000,
            1024,
            8,
            # 26.6e9 B: 16.1e9 weights, 18 x 21e6 of the adapter, 4.5e9 kept, 5.5e9 of one layer computed again
            "; 16 would take 24.8 GiB, more than 90% of the 24 GiB of L4",
        ),
    ],
)
def test_the_measured_batch(
    load: Load, caplog: pytest.LogCaptureFixture, text: str, num_samples: int, longest: int, chosen: int, reason: str
) -> None:
    sizes = DataSizes(longest, longest, num_samples, None, SequenceSizes(longest, longest // 2))
    with caplog.at_level(logging.INFO, logger="llmforge"):
        job = size_job(resolve_job(load(text), CPU), sizes, ModelSizes(read_model_shape(LLAMA_8B)))
    assert job.train_batch_size_per_device == chosen
    assert f"train_batch_size_per_device: {chosen}{reason}" in caplog.messages


@pytest.mark.parametrize(
    ("p95", "longest", "chosen"),
    [
        (300, 8192, 512),
        (512, 8192, 512),
        (513, 8192, 1024),
        (9000, 8192, 8192),
        (9000, None, 16384),
        (1, None, 8),
        (200, 200, 200),
    ],
)
def test_the_measured_context_length(p95: int, longest: int | None, chosen: int) -> None:
    assert measured_context_length(p95, longest)[0] == chosen


@given(st.integers(1, 10**6), st.integers(8, 10**6))
def test_the_context_length_holds_most_examples_or_is_the_models(p95: int, longest: int) -> None:
    chosen, _ = measured_context_length(p95, longest)
    assert chosen <= longest
    assert chosen >= min(p95, longest)
    assert chosen < max(2 * p95, 9)


@pytest.mark.parametrize(
    ("text", "num_epochs", "max_steps"),
    [
        ("", 2, 126),  # 1000 sequences, 16 a step: 63 steps an epoch; 100 steps take 2 epochs
        ("num_epochs: 3", 3, 189),
        ("max_steps: 70", 2, 70),
        ("num_epochs: 1\nmax_steps: 70", 1, 63),
        ("num_epochs: 3\nmax_steps: 70", 3, 70),
        ("min_update_steps: 1000", 16, 1008),
    ],
)
def test_epochs_and_steps(load: Load, text: str, num_epochs: int, max_steps: int) -> None:
    batch = "num_devices: 2\ngradient_accumulation_steps: 2\ntrain_batch_size_per_device: 4"
    job = resolve_job(load(f"{batch}\n{text}"), CPU)
    assert global_batch_size(job) == 16
    assert steps_per_epoch(job, 1000) == 63
    sized = size_job(job, SIZES)
    assert (sized.num_epochs, sized.max_steps, sized.context_length) == (num_epochs, max_steps, 512)
    assert size_job(sized, SIZES) == sized


def test_nothing_to_train_on(load: Load) -> None:
    with pytest.raises(ConfigError, match="train_path: found no sequence to train on"):
        size_job(resolve_job(load(""), CPU), replace(SIZES, num_train_samples=0))

"""The DeepSpeed section: `auto` values, contradictions, files."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.config.deepspeed import (
    build_deepspeed_config,
    find_deepspeed_problems,
    read_deepspeed,
    zero_stage_of,
)
from llmforge.config.finding import path_text
from llmforge.errors import ConfigError
from tests.config.conftest import Load

# As published with the original, with everything auto that may be.
ZERO_3 = {
    "fp16": {"enabled": "auto"},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 10,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def _build(user: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "zero_stage": 3,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_workers": 8,
        "precision": "bf16",
        "max_grad_norm": 1.0,
        "hidden_size": 4095,
    }
    return build_deepspeed_config(user, **(job | changes))


def _refusal(user: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _build(user, **changes)
    return str(caught.value).splitlines()


def test_a_batch_that_is_not_chosen_yet_is_left_open() -> None:
    config = _build({"train_batch_size": "auto"}, micro_batch_size=None)
    assert config["train_batch_size"] == "auto"
    assert "train_micro_batch_size_per_gpu" not in config
    assert config["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1), ("fp16", 1)])
def test_sixteen_bits_need_zero(precision: str, stage: int) -> None:
    assert _build({}, zero_stage=0, precision=precision)["zero_optimization"]["stage"] == stage


def test_every_auto_is_filled_in() -> None:
    config = _build(ZERO_3)
    assert "auto" not in json.dumps(config)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_batch_size"] == 64
    assert config["gradient_clipping"] == 1.0
    assert (config["bf16"], config["fp16"]) == ({"enabled": True}, {"enabled": False})
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4095 * 4095
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 4095 * 4095)
    assert type(zero["stage3_prefetch_bucket_size"]) is int
    assert zero["stage3_param_persistence_threshold"] == 40950
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert config["steps_per_print"] == 10
    assert config["zero_force_ds_cpu_optimizer"] is False


def test_without_a_section_the_job_decides() -> None:
    assert _build(None, zero_stage=1, precision="fp32", max_grad_norm=None) == {
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 64,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 1},
    }


def test_what_the_user_says_stays(load: Load) -> None:
    user = {"wall_clock_breakdown": True, "zero_allow_untested_optimizer": False, "fp16": {"loss_scale_window": 5}}
    config = _build(user, precision="fp16")
    assert (config["wall_clock_breakdown"], config["zero_allow_untested_optimizer"]) == (True, False)
    assert config["fp16"] == {"loss_scale_window": 5, "enabled": True}


def test_the_users_section_is_not_changed() -> None:
    before = deepcopy(ZERO_3)
    _build(ZERO_3)
    assert before == ZERO_3


def test_every_contradiction_names_both_sides() -> None:
    user = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 8,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "fp16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
    remedy = "write auto, or change one of them"
    batch = "train_batch_size_per_device"
    assert _refusal(user) == [
        f"deepspeed.train_micro_batch_size_per_gpu: found 1, but the job says 4 ({batch}); {remedy}",
        f"deepspeed.gradient_accumulation_steps: found 1, but the job says 2 (gradient_accumulation_steps); {remedy}",
        "deepspeed.train_batch_size: found 8, but the job says 64 (train_batch_size_per_device x "
        f"gradient_accumulation_steps x num_devices); {remedy}",
        f"deepspeed.gradient_clipping: found 0.5, but the job says 1.0 (max_grad_norm); {remedy}",
        f"deepspeed.bf16.enabled: found false, but the job says true (precision); {remedy}",
        f"deepspeed.fp16.enabled: found true, but the job says false (precision); {remedy}",
        f"deepspeed.zero_optimization.stage: found 2, but the job says 3 (the ZeRO stage); {remedy}",
    ]


def test_equal_numbers_are_no_contradiction() -> None:
    assert _build({"train_batch_size": 64, "gradient_clipping": 1})["train_batch_size"] == 64


def test_sections_that_belong_to_the_job() -> None:
    user = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "scheduler": {"type": "WarmupLR"}}
    assert _refusal(user) == [
        "deepspeed.optimizer: found a DeepSpeed optimizer section, which is not read; remove it and use the job's keys "
        "optimizer, learning_rate and max_grad_norm",
        "deepspeed.scheduler: found a DeepSpeed scheduler section, which is not read; remove it and use the job's keys "
        "lr_scheduler_type and num_warmup_steps",
    ]


def test_an_auto_without_meaning_is_named_by_its_path() -> None:
    (line,) = _refusal({"activation_checkpointing": {"sizes": [1, "auto"]}})
    assert line.startswith(
        "deepspeed.activation_checkpointing.sizes[1]: found auto, allowed is a value: auto can be filled in for "
        "train_micro_batch_size_per_gpu, gradient_accumulation_steps, "
    )


@pytest.mark.parametrize("key", ["zero_optimization", "bf16", "fp16"])
def test_sections_are_objects(key: str) -> None:
    assert _refusal({key: True}) == [f"deepspeed.{key}: found true, allowed is an object"]


@given(
    st.recursive(
        st.none() | st.integers() | st.sampled_from(["auto", "x"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=8,
    )
)
def test_no_auto_is_overlooked(value: Any) -> None:
    found = find_deepspeed_problems({"section": value})
    assert len(found) == json.dumps(value).count('"auto"')
    assert len({path_text(finding.path) for finding in found}) == len(found)


@pytest.mark.parametrize(
    ("config", "stage"),
    [({}, 0), ({"zero_optimization": {}}, 0), ({"zero_optimization": {"stage": 2}}, 2), (ZERO_3, 3)],
)
def test_the_stage_of_a_section(config: dict[str, Any], stage: int) -> None:
    assert zero_stage_of(config) == stage


def test_a_file_is_read_into_the_job(load: Load) -> None:
    Path("zero_3.json").write_text(json.dumps(ZERO_3))
    job = read_deepspeed(load("deepspeed: {config_path: zero_3.json}\n"))
    assert job.deepspeed == ZERO_3
    assert read_deepspeed(job) is job


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "zero_3.json: cannot be read: No such file or directory; the path counts from the working directory"),
        (b'{\n  "a": 1,\n}', "zero_3.json:3: not valid JSON: "),
        (b"[1]", "zero_3.json: found JSON that is no object, allowed is a DeepSpeed configuration"),
        (b'{"a": "\xff"}', "zero_3.json: found a byte that is not UTF-8 at offset 7"),
    ],
)
def test_files_that_cannot_be_read(load: Load, content: bytes | None, message: str) -> None:
    job = load("deepspeed: {config_path: zero_3.json}\n")
    if content is not None:
        Path("zero_3.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(job)
    assert str(caught.value).startswith(f"deepspeed.config_path: {message}")

"""Old spellings: what they become, what the user is told, and that their lines are kept."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llmforge.config.legacy import translate_legacy
from tests.config.conftest import Load, Problems

SCALING = "preference_tuning_config: {logprob_processor_scaling_config: {%s: {GPU: 1}}}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"checkpoint_every_n_epochs": 2},
            {"checkpoint_and_evaluation_frequency": {"unit": "epochs", "frequency": 2}},
        ),
        ({"max_num_checkpoints": 3}, {"num_checkpoints_to_keep": 3}),
        ({"no_gradient_checkpoint": True}, {"gradient_checkpointing": False}),
        ({"no_gradient_checkpoint": False}, {"gradient_checkpointing": True}),
        ({"dataset_size_scaling_factor": 1000}, {}),
        ({"lora_config": {"rank": 4, "lora_alpha": 8}}, {"lora_config": {"lora_alpha": 8, "r": 4}}),
        (
            {"preference_tuning_config": {"logprob_processor_scaling_config": {"worker_resources": {"GPU": 1}}}},
            {"preference_tuning_config": {"logprob_processor_scaling_config": {"custom_resources": {"GPU": 1}}}},
        ),
        ({"lora_config": None, "num_epochs": 1}, {"lora_config": None, "num_epochs": 1}),
        ({}, {}),
    ],
)
def test_every_old_key(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = repr(old)
    assert translate_legacy(old).data == new
    assert repr(old) == before
    again = translate_legacy(new)
    assert (again.data, again.renames, again.notices) == (new, {}, ())


def test_one_notice_for_each_key_with_its_line(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "max_num_checkpoints: 3\nno_gradient_checkpoint: true\ndataset_size_scaling_factor: 10000\n"
        "lora_config:\n  rank: 4\ncheckpoint_every_n_epochs: 1\n"
    )
    with caplog.at_level(logging.WARNING, logger="llmforge"):
        job = load(text)
    assert job.lora_config is not None
    assert (job.num_checkpoints_to_keep, job.gradient_checkpointing, job.lora_config.r) == (3, False, 4)
    assert caplog.messages == [
        "job.yaml:8: checkpoint_every_n_epochs: is an old spelling, read as checkpoint_and_evaluation_frequency",
        "job.yaml:3: max_num_checkpoints: is an old spelling, read as num_checkpoints_to_keep",
        "job.yaml:4: no_gradient_checkpoint: is an old spelling, read as gradient_checkpointing",
        "job.yaml:5: dataset_size_scaling_factor: has no effect any more and is left out; remove it",
        "job.yaml:7: lora_config.rank: is an old spelling, read as lora_config.r",
    ]


def test_a_wrong_value_is_found_at_the_line_of_the_old_key(problems: Problems) -> None:
    assert problems(
        "seed: 1\nmax_num_checkpoints: none\ncheckpoint_every_n_epochs: 0\nno_gradient_checkpoint: 3\n"
    ) == [
        "job.yaml:4: num_checkpoints_to_keep: found the text 'none', allowed is a whole number at least 1 "
        "(written as max_num_checkpoints)",
        "job.yaml:5: checkpoint_and_evaluation_frequency.frequency: found 0, allowed is a whole number at least 1 "
        "(written as checkpoint_every_n_epochs)",
        "job.yaml:6: gradient_checkpointing: found 3, allowed is true or false (written as no_gradient_checkpoint)",
    ]


def test_the_line_inside_a_translated_section_is_kept(problems: Problems) -> None:
    text = "preference_tuning_config:\n  logprob_processor_scaling_config:\n    worker_resources:\n      GPU: -1\n"
    assert (
        "job.yaml:6: preference_tuning_config.logprob_processor_scaling_config.custom_resources.GPU: found -1, "
        "allowed is a number at least 0 (written as preference_tuning_config.logprob_processor_scaling_config."
        "worker_resources)"
    ) in problems(text)


def test_old_and_new_together_are_refused(problems: Problems) -> None:
    assert problems("num_checkpoints_to_keep: 2\nmax_num_checkpoints: 3\n") == [
        "job.yaml:4: max_num_checkpoints: is the old spelling of num_checkpoints_to_keep, which is given as well; "
        "remove it"
    ]


def test_overrides_may_be_old_too(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    job = load("lora_config: {rank: 4}\n", "lora_config.rank=16", "checkpoint_every_n_epochs=5")
    assert job.lora_config is not None
    assert job.lora_config.r == 16
    assert job.checkpoint_and_evaluation_frequency.frequency == 5
    assert caplog.messages[1:] == [
        "command line: lora_config.rank: is an old spelling, read as lora_config.r",
        "command line: checkpoint_every_n_epochs: is an old spelling, read as checkpoint_and_evaluation_frequency",
    ]


def test_an_override_without_effect_is_left_out(load: Load) -> None:
    assert load("", "dataset_size_scaling_factor=3") == load("")


def test_a_new_override_wins_over_an_old_key(load: Load) -> None:
    assert load("max_num_checkpoints: 3\n", "num_checkpoints_to_keep=7").num_checkpoints_to_keep == 7

"""`key=value` words: parsed as YAML, laid over the file, and named as the command line in messages."""

from __future__ import annotations

from typing import Any

import pytest

from llmforge.config.finding import Finding
from llmforge.config.overrides import Override, apply_override, parse_override
from llmforge.errors import ConfigError
from tests.config.conftest import Load, Problems


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("num_epochs=15", ("num_epochs",), 15),
        ("learning_rate=1e-4", ("learning_rate",), 1e-4),
        ("lora_config.r=16", ("lora_config", "r"), 16),
        ("lora_config={r: 4}", ("lora_config",), {"r": 4}),
        ("train_path=[a, b]", ("train_path",), ["a", "b"]),
        ("train_path.0=c", ("train_path", 0), "c"),
        ("output_dir=a=b", ("output_dir",), "a=b"),
        ("valid_path=", ("valid_path",), None),
        ("worker_resources.accelerator_type:A10G=0.1", ("worker_resources", "accelerator_type:A10G"), 0.1),
    ],
)
def test_words(word: str, path: tuple[str | int, ...], value: object) -> None:
    assert parse_override(word) == Override(path, value)


@pytest.mark.parametrize("word", ["num_epochs", "=3", "a..b=3", "", ".a=1"])
def test_words_that_are_none(word: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed is key=value, such as num_epochs=3 or lora_config\.r=16"):
        parse_override(word)


@pytest.mark.parametrize(
    ("data", "path", "expected"),
    [
        ({}, ("a", "b"), {"a": {"b": 1}}),
        ({"a": None}, ("a", "b"), {"a": {"b": 1}}),
        ({"a": {"b": {"c": 2}, "d": 3}}, ("a", "b"), {"a": {"b": 1, "d": 3}}),
        ({"a": [{"b": 0}, 5]}, ("a", 0, "b"), {"a": [{"b": 1}, 5]}),
        ({"a": {}}, ("a", 0), {"a": {"0": 1}}),
    ],
)
def test_values_are_set(data: dict[str, Any], path: tuple[str | int, ...], expected: dict[str, Any]) -> None:
    before = repr(data)
    assert apply_override(data, Override(path, 1)) == expected
    assert repr(data) == before


@pytest.mark.parametrize(
    ("data", "path", "where"),
    [({"a": 5}, ("a", "b"), "a"), ({"a": [1]}, ("a", 1), "a"), ({"a": [1]}, ("a", "b"), "a")],
)
def test_paths_that_lead_nowhere(data: dict[str, Any], path: tuple[str | int, ...], where: str) -> None:
    assert apply_override(data, Override(path, 1)) == Finding(
        path, f"cannot be set: {where} is neither a mapping nor a list with such an item"
    )


def test_overrides_win_and_the_last_one_counts(load: Load) -> None:
    job = load("num_epochs: 1\nlora_config: {r: 4, lora_alpha: 9}\n", "num_epochs=2", "lora_config.r=8", "num_epochs=3")
    assert job.lora_config is not None
    assert (job.num_epochs, job.lora_config.r, job.lora_config.lora_alpha) == (3, 8, 9)


def test_an_override_can_cure_the_file(load: Load) -> None:
    assert load("num_epochs: many\n", "num_epochs=2").num_epochs == 2


def test_mistakes_are_those_of_the_command_line(problems: Problems) -> None:
    found = problems(
        "lora_config:\n  r: 4\n  bias: some\n",
        "num_epoch=2",
        "lora_config.r=0",
        "liger_kernel.enable=true",
        "seed=a: 2",
        "seed={a: 1, a: 2}",
        "model_id.x=3",
        "early_stopping={}",
    )
    assert found[0] == "job.yaml:5: lora_config.bias: found the text 'some', allowed is none, all or lora_only"
    assert sorted(found[1:]) == sorted(
        [
            "command line: seed.a: duplicate key, given in line 1 too; keep one of them",
            "command line: model_id.x: cannot be set: model_id is neither a mapping nor a list with such an item",
            "command line: seed: found a mapping, allowed is a whole number at least 0 and below 4294967296",
            "command line: num_epoch: unknown key (did you mean num_epochs?)",
            "command line: lora_config.r: found 0, allowed is a whole number at least 1",
            "command line: liger_kernel.enable: unknown key (did you mean enabled?)",
            "command line: early_stopping: needs validation data; add valid_path or dataset.valid_fraction",
        ]
    )

"""The key `logger`: one service or several, each with settings of its own."""

from __future__ import annotations

import pytest

from llmforge.config.loggers import MlflowSettings, TensorboardSettings, WandbSettings
from tests.config.conftest import Load, Problems


def test_one_logger_or_a_list(load: Load) -> None:
    assert load("num_devices: 1").loggers == ()
    (one,) = load("logger: {provider: wandb, provider_config: {project: bots, tags: [a]}}").loggers
    assert one.provider_config == WandbSettings(project="bots", tags=("a",))
    two = load("logger: [{provider: tensorboard}, {provider: mlflow, provider_config: {tags: {team: a}}}]").loggers
    assert [logger.provider_config for logger in two] == [TensorboardSettings(), MlflowSettings(tags={"team": "a"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "logger: {provider: comet}",
            "logger.provider: found the text 'comet', allowed: tensorboard, wandb, mlflow",
        ),
        (
            "logger: {provider_config: {}}",
            "logger.provider: required, but missing; allowed: tensorboard, wandb, mlflow",
        ),
        (
            "logger: {provider: wandb, provider_config: {projekt: bots}}",
            "logger.provider_config.projekt: unknown key (did you mean project?)",
        ),
        (
            "logger: {provider: tensorboard, provider_config: {project: bots}}",
            "logger.provider_config.project: unknown key (allowed: log_dir)",
        ),
        (
            "logger: [{provider: wandb, provider_config: {mode: sometimes}}]",
            "logger[0].provider_config.mode: found the text 'sometimes', allowed is online or offline",
        ),
        (
            "logger: [{provider: wandb}, {provider: wandb}]",
            "logger: found wandb more than once, allowed is each provider once; remove the others",
        ),
        ("logger: wandb", "logger: found the text 'wandb', allowed is a mapping or a list"),
    ],
)
def test_what_is_refused(problems: Problems, text: str, message: str) -> None:
    assert [line.split(": ", 1)[1] for line in problems(text)] == [message]

"""The places beside `metrics.jsonl` that the metrics of a run go to, and what each of them must be told.

The services are one tagged union on `provider`. Keys and passwords are no part of it: they come from the environment.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from llmforge.config.base import StrictModel

Name = Annotated[str, Field(min_length=1)]


class TensorboardSettings(StrictModel):
    """Event files that `tensorboard --logdir` shows."""

    log_dir: Name | None = None
    """Local folder or `s3://` uri that gets a folder with the name of the run. Default: `tensorboard` in the run's own
    folder."""


class WandbSettings(StrictModel):
    """A run of Weights & Biases; the key comes from `WANDB_API_KEY` or `wandb login`, the server from
    `WANDB_BASE_URL`."""

    project: Name = "llmforge"
    """The project that gets the run."""
    entity: Name | None = None
    """The user or team that owns the project. Default: that of the key."""
    name: Name | None = None
    """What the run is called there. Default: `run_name`."""
    tags: tuple[Name, ...] = ()
    """Words to find the run by."""
    mode: Literal["online", "offline"] | None = None
    """`offline` needs neither key nor network: `wandb sync` sends what lies in `dir` later. Default: `WANDB_MODE`, else
    `online`."""
    dir: Name | None = None
    """Folder on the driver's machine in which `wandb` keeps its files. Default: the working folder, or `WANDB_DIR`."""


class MlflowSettings(StrictModel):
    """A run on an MLflow server; user and password, or token, come from `MLFLOW_TRACKING_USERNAME`,
    `MLFLOW_TRACKING_PASSWORD` and `MLFLOW_TRACKING_TOKEN`."""

    tracking_uri: Name | None = None
    """Address of the server, such as `http://mlflow:5000`, or `databricks`. Default: `MLFLOW_TRACKING_URI`."""
    experiment_name: Name = "llmforge"
    """The experiment that gets the run; made where it is not there."""
    name: Name | None = None
    """What the run is called there. Default: `run_name`."""
    tags: dict[Name, str] = Field(default_factory=dict)
    """Tags of the run."""


class TensorboardLogger(StrictModel):
    """Metrics as TensorBoard's event files."""

    provider: Literal["tensorboard"]
    """The service; needs `pip install 'llmforge[tensorboard]'`."""
    provider_config: TensorboardSettings = TensorboardSettings()
    """Its settings."""


class WandbLogger(StrictModel):
    """Metrics to Weights & Biases."""

    provider: Literal["wandb"]
    """The service; needs `pip install 'llmforge[wandb]'`."""
    provider_config: WandbSettings = WandbSettings()
    """Its settings."""


class MlflowLogger(StrictModel):
    """Metrics to MLflow."""

    provider: Literal["mlflow"]
    """The service; needs `pip install 'llmforge[mlflow]'`."""
    provider_config: MlflowSettings = MlflowSettings()
    """Its settings."""


LoggerConfig = Annotated[TensorboardLogger | WandbLogger | MlflowLogger, Discriminator("provider")]


def _logger_kind(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "logger"


def _check_once(loggers: tuple[LoggerConfig, ...]) -> tuple[LoggerConfig, ...]:
    providers = [logger.provider for logger in loggers]
    twice = sorted({provider for provider in providers if providers.count(provider) > 1})
    if twice:
        raise ValueError(f"found {', '.join(twice)} more than once, allowed is each provider once; remove the others")
    return loggers


Loggers = Annotated[
    Annotated[LoggerConfig, Tag("logger")]
    | Annotated[tuple[LoggerConfig, ...], AfterValidator(_check_once), Tag("list")],
    Discriminator(_logger_kind),
]
"""One logger, or a list of them."""

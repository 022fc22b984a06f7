"""The keys of a job that say where it runs and what it leaves behind: devices, resources, output, loggers.

`RunKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from llmforge.config.base import PLAIN_NAME, FreeValue, StrictModel

Resources = dict[str, Annotated[float, Field(ge=0)]]


class LoggerConfig(StrictModel):
    """One more place that metrics go to; `metrics.jsonl` and the progress display are always on."""

    provider: Literal["wandb", "mlflow", "tensorboard"]
    """Which service."""
    provider_config: dict[str, FreeValue] = Field(default_factory=dict)
    """Its settings, such as `project` and `name`; never a key or password: these come from the environment."""


def _logger_kind(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "logger"


Loggers = Annotated[
    Annotated[LoggerConfig, Tag("logger")] | Annotated[tuple[LoggerConfig, ...], Tag("list")],
    Discriminator(_logger_kind),
]
"""One logger, or a list of them."""


def _prompts_kind(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "path"


class EvaluationConfig(StrictModel):
    """Answers generated at every evaluation and shown in the report."""

    prompts: Annotated[
        Annotated[str, Tag("path")] | Annotated[tuple[str, ...], Field(min_length=1), Tag("list")],
        Discriminator(_prompts_kind),
    ]
    """Path of a file of prompts, or a list of prompts."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer, in tokens."""


class RunKeys(StrictModel):
    """Run."""

    num_devices: Annotated[int, Field(ge=1)] = 1
    """Ray Train workers, one device each."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """What the workers compute on; `auto` is GPU if the cluster has one, else CPU with a notice."""
    trainer_resources: Resources | None = None
    """Ray resources of the first worker, such as `memory: 53_687_091_200`. Default: none beyond its device."""
    worker_resources: Resources | None = None
    """Ray resources of every worker, such as `accelerator_type:A10G: 0.001`. Default: none beyond its device."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the latest complete checkpoint after a failure; the loss of a node that was announced to go does
    not count."""
    stall_timeout_seconds: Annotated[float, Field(ge=5)] | None = 900
    """Restart the workers when no rank has moved for so long, and report phase and stacks of all; `null`: never."""
    storage_timeout_seconds: Annotated[float, Field(ge=0)] = 1800
    """How long a run goes on trying when the object store does not answer; training goes on meanwhile."""
    output_dir: Annotated[str, Field(min_length=1)] = "./runs"
    """Local folder or `s3://` uri under which the run gets its folder."""
    run_name: Annotated[str, Field(pattern=PLAIN_NAME, max_length=128, examples=["support-bot-3"])] | None = None
    """Name of the run and of its folder. Default: `<model>-<task>-<time>-<hash>`."""
    logger: Loggers | None = None
    """Further places that metrics go to."""
    evaluation: EvaluationConfig | None = None
    """Answers generated at every evaluation and shown in the report. Default: none."""

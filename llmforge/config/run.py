"""The keys of a job that say where it runs and what it leaves behind: devices, resources, output, loggers.

`RunKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from llmforge.config.base import PLAIN_NAME, FreeValue, StrictModel
from llmforge.config.loggers import LoggerConfig, Loggers

Resources = dict[str, Annotated[float, Field(ge=0)]]


Messages = tuple[dict[str, FreeValue], ...]


class PromptMessages(StrictModel):
    """A conversation that the model is to answer."""

    messages: Messages
    """Of `role` and `content`; the last one is the user's."""


def _prompt_kind(value: object) -> str:
    if isinstance(value, list | tuple):
        return "messages"
    return "conversation" if isinstance(value, dict | PromptMessages) else "text"


EvaluationPrompt = Annotated[
    Annotated[str, Tag("text")] | Annotated[Messages, Tag("messages")] | Annotated[PromptMessages, Tag("conversation")],
    Discriminator(_prompt_kind),
]
"""The text of one user message, or a conversation."""


def _prompts_kind(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "path"


MOST_EVALUATION_PROMPTS = 100


class EvaluationConfig(StrictModel):
    """Answers generated at every evaluation and shown in the report.

    The training waits for them, at each evaluation anew, so they are bounded: `llmforge generate` answers more prompts,
    or at greater length, from any checkpoint.
    """

    prompts: Annotated[
        Annotated[str, Field(min_length=1), Tag("path")]
        | Annotated[tuple[EvaluationPrompt, ...], Field(min_length=1, max_length=MOST_EVALUATION_PROMPTS), Tag("list")],
        Discriminator(_prompts_kind),
    ]
    """Up to 100 prompts: a list of texts, each a message of the user's, and of conversations; or the local path or
    `s3://` uri of a JSONL file with `messages` on every line, as `llmforge generate` takes it."""
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256
    """Longest answer, in tokens. Each of them takes all devices a pass over the whole model."""


class ElasticDevices(StrictModel):
    """As many devices as the cluster has, within bounds: training begins with `min` or more, and follows it."""

    min: Annotated[int, Field(ge=1)]
    """With fewer it waits. Memory and ZeRO stage are planned for so many."""
    max: Annotated[int, Field(ge=1)]
    """The sequences of a step are those of so many devices; fewer take more micro-batches each."""
    resize_interval_seconds: Annotated[float, Field(ge=1)] = 60
    """How often to look whether the cluster has more devices, and to save and start anew with them if so."""


def _devices_kind(value: object) -> str:
    return "elastic" if isinstance(value, dict | ElasticDevices) else "number"


Devices = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[ElasticDevices, Tag("elastic")],
    Discriminator(_devices_kind),
]
"""A number of devices, or bounds for it."""


class RunKeys(StrictModel):
    """Run."""

    num_devices: Devices = 1
    """Ray Train workers, one device each; or `{min: 2, max: 8}` to train with as many of them as there are."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """What the workers compute on; `auto` is GPU if the cluster has one, else CPU with a notice."""
    trainer_resources: Resources | None = None
    """Ray resources meant for the first worker, such as `memory: 53_687_091_200`; every worker asks for them, as Ray
    Train gives all the same. Default: none beyond its device."""
    worker_resources: Resources | None = None
    """Ray resources of every worker, such as `accelerator_type:A10G: 0.001`. Default: none beyond its device."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the latest complete checkpoint after a failure; the loss of a node that was announced to go does
    not count."""
    stall_timeout_seconds: Annotated[float, Field(ge=5)] | None = 900
    """Restart the workers when no rank has moved for so long, and report phase and stacks of all; `null`: never."""
    resource_timeout_seconds: Annotated[float, Field(ge=0)] | None = None
    """How long to wait for devices that are in use or not there, at the start and after the loss of a node. Default:
    half an hour after the loss of a node, and where an autoscaler adds nodes; else 20 seconds for devices in use, and
    none for what is not there."""
    storage_timeout_seconds: Annotated[float, Field(ge=0)] = 1800
    """How long a run goes on trying when the object store does not answer; training goes on meanwhile."""
    output_dir: Annotated[str, Field(min_length=1)] = "./runs"
    """Local folder or `s3://` uri under which the run gets its folder."""
    run_name: Annotated[str, Field(pattern=PLAIN_NAME, max_length=128, examples=["support-bot-3"])] | None = None
    """Name of the run and of its folder. Default: `<model>-<task>-<time>-<hash>`."""
    logger: Loggers | None = None
    """Further places that metrics go to, such as `{provider: tensorboard}`, or a list of them; `metrics.jsonl` and the
    progress display are always on."""
    evaluation: EvaluationConfig | None = None
    """Prompts that are answered at every evaluation, and shown in the report with their answers; needs validation
    data. Default: none."""

    @property
    def loggers(self) -> tuple[LoggerConfig, ...]:
        """The further places as a list."""
        if self.logger is None:
            return ()
        return self.logger if isinstance(self.logger, tuple) else (self.logger,)

    @property
    def min_devices(self) -> int:
        """The fewest devices to train with."""
        return self.num_devices.min if isinstance(self.num_devices, ElasticDevices) else self.num_devices

    @property
    def max_devices(self) -> int:
        """The most devices to train with; the sequences of a step are theirs."""
        return self.num_devices.max if isinstance(self.num_devices, ElasticDevices) else self.num_devices

    @property
    def resize_interval_seconds(self) -> float:
        """How often to look for more devices; without a meaning where their number is fixed."""
        devices = self.num_devices if isinstance(self.num_devices, ElasticDevices) else ElasticDevices(min=1, max=1)
        return devices.resize_interval_seconds

    @property
    def devices_text(self) -> str:
        """How many devices, in words."""
        return (
            f"{self.min_devices} to {self.max_devices}"
            if self.max_devices > self.min_devices
            else str(self.max_devices)
        )

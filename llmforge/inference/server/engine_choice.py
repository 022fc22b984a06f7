"""Which program makes the answers: vLLM where it can, `transformers` otherwise.

In: what was asked for, and the models. Out: the choice with its reason, to be printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from llmforge.config.serving import VLLM_MAX_RANK, unservable_choices, vllm_rank
from llmforge.errors import ConfigError
from llmforge.inference.find import TrainedSource
from llmforge.inference.load import has_adapter
from llmforge.models.folder import adapter_rank

EngineName = Literal["auto", "vllm", "transformers"]


@dataclass(frozen=True)
class EngineChoice:
    """What was chosen, and why."""

    name: Literal["vllm", "transformers"]
    reason: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} ({self.reason})"


def choose_engine(asked: EngineName, sources: Sequence[TrainedSource]) -> EngineChoice:
    """Choose for this machine. Raises `ConfigError` where vLLM was asked for and cannot be had."""
    if asked == "transformers":
        return EngineChoice("transformers", "as asked")
    obstacles = [] if find_spec("vllm") else ["no package vllm in this environment"]
    obstacles += [obstacle for source in sources for obstacle in vllm_obstacles(source)]
    return decide(asked, obstacles, has_gpu=torch.cuda.is_available())


def decide(asked: Literal["auto", "vllm"], obstacles: Sequence[str], *, has_gpu: bool) -> EngineChoice:
    """The rule itself: unasked, vLLM is taken on a GPU only; asked for, it runs on whatever it was built for."""
    if asked == "vllm":
        if obstacles:
            raise ConfigError(
                f"--engine vllm: found {'; '.join(obstacles)}; install vllm beside llmforge (docs/serving.md), export "
                "the merged weights and serve those, or take --engine auto"
            )
        return EngineChoice("vllm", "as asked")
    if not has_gpu:
        return EngineChoice("transformers", "no GPU")
    if obstacles:
        return EngineChoice("transformers", "; ".join(obstacles))
    return EngineChoice("vllm", "on a GPU, and it takes these models")


def vllm_obstacles(source: TrainedSource) -> list[str]:
    """What keeps vLLM from serving a model as it was trained; nothing where all weights are the model's own."""
    if source.classifier is not None:
        return [f"{source.uri}: a classifier, of whose labels vLLM gives no probabilities"]
    folder, job = source.fetch_small(), source.job
    if job.lora_config is None or not has_adapter(source, folder):
        return []
    found = [f"an adapter with {choice}" for choice in unservable_choices(job.lora_config)]
    rank = adapter_rank(folder)
    if vllm_rank(rank) is None:
        found.append(f"an adapter of rank {rank}, of which vLLM takes at most {VLLM_MAX_RANK}")
    if job.quantization is not None:
        found.append(f"an adapter trained over a base in {job.quantization.bits} bits")
    if job.initial_base_model_ckpt_path is not None:
        found.append("an adapter over weights of initial_base_model_ckpt_path")
    return [f"{source.uri}: {obstacle}" for obstacle in found]

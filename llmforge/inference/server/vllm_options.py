"""What vLLM is asked for, in its own words.

In: what llmforge knows of the models, and `Generation`s. Out: arguments for vLLM's engine and its sampling, and scores
from its log probabilities. vLLM itself is not imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmforge.config.serving import vllm_rank
from llmforge.inference.server.answer import ScoredToken
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.generation import Generation
from llmforge.inference.server.requests import MAX_TOP_LOGPROBS


@dataclass(frozen=True)
class VllmAdapter:
    """A LoRA adapter that vLLM loads beside the base."""

    name: str
    folder: Path
    rank: int
    """The largest of a layer."""


@dataclass(frozen=True)
class VllmPlan:
    """What vLLM loads."""

    model: Path
    """A folder with the weights and their `config.json`."""
    dtype: str
    """Of the weights in memory, as vLLM names it."""
    longest: int
    """Most tokens of a prompt with its answer."""
    adapters: tuple[VllmAdapter, ...]
    """None where the weights of the folder are served themselves."""


class TokenLogprob(Protocol):
    """What vLLM says of a token."""

    @property
    def logprob(self) -> float:
        """Natural logarithm of its probability."""


def engine_arguments(plan: VllmPlan, limits: EngineLimits) -> dict[str, object]:
    """For `AsyncEngineArgs`. Text never passes through vLLM, so it gets no tokenizer."""
    arguments: dict[str, object] = {
        "model": str(plan.model),
        "dtype": plan.dtype,
        "skip_tokenizer_init": True,
        "max_model_len": plan.longest,
        "max_num_seqs": limits.max_concurrency,
        "generation_config": "vllm",  # not what the base model's publisher preferred
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": MAX_TOP_LOGPROBS,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if plan.adapters:
        rank = vllm_rank(max(adapter.rank for adapter in plan.adapters))
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": len(plan.adapters)}
    return arguments


def sampling_arguments(generation: Generation) -> dict[str, object]:
    """For `SamplingParams`. Stops that are no single tokens are read from the answer by llmforge, as are texts."""
    sampling = generation.sampling
    return {
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p or 0.0,
        "seed": sampling.seed,
        "max_tokens": generation.rules.max_tokens,
        "stop_token_ids": sorted(generation.rules.stops.token_ids),
        "ignore_eos": True,  # what ends an answer is among the stops
        "logprobs": generation.num_top,
        "detokenize": False,
    }


def scored(token: int, num_top: int, logprobs: Mapping[int, TokenLogprob]) -> ScoredToken:
    """The score of a token from vLLM's, which are of the most probable tokens and of the one that was taken."""
    found = sorted(((other, one.logprob) for other, one in logprobs.items()), key=lambda pair: -pair[1])
    return ScoredToken(token, logprobs[token].logprob, tuple(found[:num_top]))

"""What vLLM is asked for, and when it is taken at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmforge.answers.sampling import Sampling
from llmforge.answers.stops import Stops
from llmforge.errors import ConfigError
from llmforge.inference.find import find_trained_model
from llmforge.inference.load import load_trained_model
from llmforge.inference.server.answer import AnswerRules, ScoredToken
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.engine_choice import choose_engine, decide, vllm_obstacles
from llmforge.inference.server.generation import Generation
from llmforge.inference.server.served_model import AnswerLimits
from llmforge.inference.server.vllm_models import served_by_vllm, vllm_plan
from llmforge.inference.server.vllm_options import (
    VllmAdapter,
    VllmPlan,
    engine_arguments,
    sampling_arguments,
    scored,
)
from tests.export.trained_runs import full_run, lora_run

LIMITS = AnswerLimits(max_tokens=400, max_total_tokens=300)


def generation(sampling: Sampling, num_top: int | None = None) -> Generation:
    rules = AnswerRules(Stops(frozenset({7, 2}), ((3, 4),), ("end",)), str, (), "", 25)
    return Generation([1, 2], rules, print, sampling, num_top)


@pytest.mark.parametrize(
    ("sampling", "num_top", "expected"),
    [
        (Sampling(temperature=0.0), None, {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None}),
        (
            Sampling(temperature=1.5, top_p=0.9, top_k=5, min_p=0.1, seed=3),
            4,
            {"temperature": 1.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3},
        ),
    ],
)
def test_sampling(sampling: Sampling, num_top: int | None, expected: dict[str, Any]) -> None:
    """Single tokens stop vLLM; other stops are read from what it gives."""
    ends = {"max_tokens": 25, "stop_token_ids": [2, 7], "ignore_eos": True, "detokenize": False, "logprobs": num_top}
    assert sampling_arguments(generation(sampling, num_top)) == expected | ends


def test_the_engine_gets_no_tokenizer_and_no_settings_of_the_publisher() -> None:
    plan = VllmPlan(Path("/base"), "bfloat16", 300, ())
    arguments = engine_arguments(plan, EngineLimits(max_concurrency=8))
    assert arguments["model"] == "/base"
    assert (arguments["skip_tokenizer_init"], arguments["generation_config"]) == (True, "vllm")
    assert (arguments["max_model_len"], arguments["max_num_seqs"], arguments["dtype"]) == (300, 8, "bfloat16")
    assert "enable_lora" not in arguments
    adapters = (VllmAdapter("a", Path("/a"), 4), VllmAdapter("b", Path("/b"), 24))
    arguments = engine_arguments(VllmPlan(Path("/base"), "bfloat16", 300, adapters), EngineLimits())
    assert (arguments["enable_lora"], arguments["max_lora_rank"], arguments["max_loras"]) == (True, 32, 2)


@dataclass(frozen=True)
class Logprob:
    """As vLLM has it."""

    logprob: float


def test_scores_are_of_the_taken_token_and_of_the_likeliest() -> None:
    """vLLM gives the token that was taken first, whether or not it is among the likeliest."""
    found = {9: Logprob(-3.0), 5: Logprob(-1.5), 4: Logprob(-0.5)}
    assert scored(9, 2, found) == ScoredToken(9, -3.0, ((4, -0.5), (5, -1.5)))
    assert scored(5, 1, {5: Logprob(-1.5), 4: Logprob(-0.5)}) == ScoredToken(5, -1.5, ((4, -0.5),))
    assert scored(5, 0, {5: Logprob(-1.5)}) == ScoredToken(5, -1.5)


def test_which_engine_is_taken() -> None:
    assert str(decide("auto", [], has_gpu=True)) == "vllm (on a GPU, and it takes these models)"
    assert str(decide("auto", [], has_gpu=False)) == "transformers (no GPU)"
    assert str(decide("auto", ["a: b", "c"], has_gpu=True)) == "transformers (a: b; c)"
    assert str(decide("vllm", [], has_gpu=False)) == "vllm (as asked)"
    with pytest.raises(ConfigError, match=r"^--engine vllm: found a: b; c; install vllm beside llmforge"):
        decide("vllm", ["a: b", "c"], has_gpu=True)
    assert str(choose_engine("transformers", [])) == "transformers (as asked)"


def test_models_that_vllm_does_not_take(stories: Path, tmp_path: Path) -> None:
    whole = find_trained_model(str(full_run(stories, tmp_path / "full").uri), "best", tmp_path)
    plain = find_trained_model(str(lora_run(stories, tmp_path / "lora").uri), "best", tmp_path)
    dora = find_trained_model(str(lora_run(stories, tmp_path / "dora", {"use_dora": True}).uri), "best", tmp_path)
    assert vllm_obstacles(whole) == vllm_obstacles(plain) == []
    assert vllm_obstacles(dora) == [f"{dora.uri}: an adapter with use_dora"]


def test_vllm_and_transformers_are_asked_and_read_alike(stories: Path, tmp_path: Path) -> None:
    """The format, the stops and the limits from files alone are those of the loaded model."""
    runs = {"whole": full_run(stories, tmp_path / "whole"), "adapter": lora_run(stories, tmp_path / "adapter")}
    for name, made in runs.items():
        source = find_trained_model(str(made.uri), "best", tmp_path)
        served, loaded = served_by_vllm(source, name, LIMITS), load_trained_model(source)
        expected = loaded.answer_format
        assert served.answer_format.stops(Sampling()) == expected.stops(Sampling())
        assert (served.answer_format.context_length, served.longest) == (expected.context_length, 300)
        assert served.answer_format.generation == expected.generation
        assert served.vocabulary_size == loaded.model.config.vocab_size
        folder = source.fetch()
        plan = vllm_plan([source], [served])
        adapters = (VllmAdapter("adapter", folder, 4),) if name == "adapter" else ()
        assert plan == VllmPlan(stories if adapters else folder, "float32", 300, adapters)

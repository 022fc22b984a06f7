"""vLLM behind the server, where it is installed: the answers of `transformers`, by the real client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.answers.sampling import Sampling
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from tests.export.trained_runs import lora_run
from tests.inference.server.servers import ASK, Served, completed, serving, streamed, text_of, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; llmforge does not require it"),
]
NAMES = ("small", "large")


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are of a size that vLLM has kernels for, with a real tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "base"
    shutil.copytree(stories, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(stories)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config.update({**sizes, "num_key_value_heads": 1, "head_dim": 64, "initializer_range": 0.3})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    other = {"r": 8, "target_modules": ["q_proj", "k_proj", "up_proj"]}
    return [lora_run(model, folder / "small").uri, lora_run(model, folder / "large", other).uri]


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(runs, tmp_path_factory.mktemp("cache"), names=NAMES, engine_name="vllm") as running:
        yield running


@pytest.fixture(scope="module")
def generators(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Generator]:
    cache = tmp_path_factory.mktemp("cache")
    return {
        name: open_generator(find_trained_model(str(run), "best", cache)) for name, run in zip(NAMES, runs, strict=True)
    }


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_and_scores_are_those_of_transformers(
    name: str, client: openai.OpenAI, generators: dict[str, Generator]
) -> None:
    """Of each adapter, whole and streamed; scores to the rounding of other kernels."""
    generator = generators[name]
    expected = generator.answer(generator.parse(ASK), Sampling(max_tokens=40))
    reply = completed(client, model=name, max_tokens=40, logprobs=True, top_logprobs=3)
    assert reply.choices[0].message.content == expected
    assert text_of(streamed(client, model=name, max_tokens=40)) == expected
    assert reply.usage is not None and reply.choices[0].logprobs is not None
    found = reply.choices[0].logprobs.content
    assert found is not None
    prompt = generator.prompt_ids(generator.parse(ASK))
    with torch.no_grad():
        first = generator.trained.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(3).values
    assert [top.logprob for top in found[0].top_logprobs] == pytest.approx(first.tolist(), abs=1e-3)
    assert reply.usage.prompt_tokens == len(prompt)


def test_stops_seeds_and_several_answers(client: openai.OpenAI) -> None:
    hot: dict[str, Any] = {"model": "small", "max_tokens": 15, "temperature": 1.5, "n": 3}
    contents = [choice.message.content for choice in completed(client, seed=7, **hot).choices]
    assert len(set(contents)) == 3
    assert [choice.message.content for choice in completed(client, seed=7, **hot).choices] == contents
    assert [choice.message.content for choice in completed(client, seed=8, **hot).choices] != contents
    whole = completed(client, model="small", max_tokens=40).choices[0].message.content or ""
    stop = whole[10:13]
    stopped = completed(client, model="small", max_tokens=40, stop=stop).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole.split(stop)[0], "stop")


def test_a_client_that_leaves_stops_its_answer(server: Served, client: openai.OpenAI) -> None:
    stream = streamed(client, model="large", max_tokens=390, n=4, temperature=2)
    next(stream)
    stream.close()
    wait_until(lambda: server.server.service.engine.num_running + server.server.service.engine.num_waiting == 0)
    assert server.counted("llmforge_answers_total") >= 4
    assert completed(client, model="large", max_tokens=2).usage is not None

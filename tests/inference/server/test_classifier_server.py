"""A classifier behind the real `openai` client, over HTTP, against `transformers` and torch alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from llmforge.config.classifier import Classifier
from llmforge.errors import ConfigError
from llmforge.inference.find import find_trained_model
from llmforge.inference.server.engine_choice import choose_engine, decide, vllm_obstacles
from tests.inference.classifiers import classifier_run, make_classifier, probabilities_of
from tests.inference.runs import make_run
from tests.inference.server.servers import ASK, Served, completed, serving, streamed, text_of

pytestmark = pytest.mark.slow

TEXTS = ("Once upon a time", "Lily", "The big red dog saw", 'Tom said, "I am', "One day, a boy", "x " * 200)
POSITIVE = [{"role": "user", "content": "Lily"}]
"""More than 0.7 for the positive label."""


@pytest.fixture(scope="module")
def classifier(stories: Path) -> Classifier:
    return make_classifier(stories, "there", "he", threshold=0.7, temperature=1.7)


@pytest.fixture(scope="module")
def run(stories: Path, classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_run(stories, tmp_path_factory.mktemp("run"), classifier)


def test_many_at_once(server: Served, client: openai.OpenAI, stories: Path, classifier: Classifier) -> None:
    """Label, probabilities, usage; and counted."""
    before = server.counted("llmforge_labels_total"), server.counted("llmforge_answers_total")
    asked = [[{"role": "user", "content": text}] for text in TEXTS]
    with ThreadPoolExecutor(4) as executor:
        replies = list(executor.map(lambda messages: completed(client, messages=messages), asked))
    for text, reply in zip(TEXTS, replies, strict=True):
        expected = probabilities_of(stories, classifier, f"<s>{text.strip()}")
        (choice,) = reply.choices
        assert choice.model_extra == {"probabilities": pytest.approx(expected, abs=1e-5)}
        assert choice.message.content == ("he" if expected["he"] >= 0.7 else "there")
        assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "stop", None)
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 1
    assert {reply.choices[0].message.content for reply in replies} == {"he", "there"}
    after = server.counted("llmforge_labels_total"), server.counted("llmforge_answers_total")
    assert [now - then for now, then in zip(after, before, strict=True)] == [len(TEXTS), len(TEXTS)]
    assert [model.id for model in client.models.list()] == ["mine"]


def test_a_stream_is_one_chunk(client: openai.OpenAI) -> None:
    whole = completed(client, messages=POSITIVE)
    chunks = list(streamed(client, messages=POSITIVE, stream_options={"include_usage": True}))
    opening, label, usage = chunks
    assert opening.choices[0].delta.role == "assistant"
    assert text_of([label]) == whole.choices[0].message.content == "he"
    assert label.choices[0].finish_reason == "stop"
    assert label.choices[0].model_extra == whole.choices[0].model_extra
    assert usage.usage == whole.usage


def test_what_may_be_asked_for(client: openai.OpenAI, stories: Path) -> None:
    """A threshold; scores of the model itself; sampling and length change nothing."""
    found = completed(client, messages=POSITIVE)
    strict = completed(client, messages=POSITIVE, extra_body={"threshold": 0.9})
    assert (found.choices[0].message.content, strict.choices[0].message.content) == ("he", "there")
    assert strict.choices[0].model_extra == found.choices[0].model_extra
    hot: dict[str, Any] = {"temperature": 1.9, "seed": 1, "max_tokens": 9999, "stop": "h", "n": 2}
    assert [choice.message.content for choice in completed(client, messages=POSITIVE, **hot).choices] == ["he", "he"]
    raw = client.completions.create(model="mine", prompt="Lily")
    assert (raw.choices[0].text, raw.choices[0].model_extra) == ("he", found.choices[0].model_extra)
    scored = completed(client, messages=POSITIVE, logprobs=True, top_logprobs=3).choices[0]
    assert scored.logprobs is not None and scored.logprobs.content is not None
    (token,) = scored.logprobs.content
    plain = make_classifier(stories, "there", "he")
    assert token.token == " he" and len(token.top_logprobs) == 3
    assert token.logprob < torch.tensor(probabilities_of(stories, plain, "<s>Lily")["he"]).log()  # of all tokens


def test_what_is_refused(client: openai.OpenAI, stories: Path, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        completed(client, extra_body={"threshold": 1.0})
    assert caught.value.param == "threshold"
    with pytest.raises(openai.BadRequestError) as caught:
        completed(client, messages=[{"role": "user", "content": "a " * 600}])
    assert caught.value.code == "context_length_exceeded"
    three = make_classifier(stories, "there", "he", "big")
    (tmp_path / "three").mkdir()
    runs = {"three": classifier_run(stories, tmp_path / "three", three), "text": make_run(stories, tmp_path)}
    for name, run in runs.items():
        with serving([run], tmp_path / "cache") as served:
            other = served.client()
            with pytest.raises(openai.BadRequestError) as caught:
                completed(other, extra_body={"threshold": 0.5})
            assert (caught.value.param, caught.value.code) == ("threshold", "unsupported_parameter")
            choice = completed(other, max_tokens=4).choices[0]
            if name == "text":
                assert not choice.model_extra
            else:
                expected = probabilities_of(stories, three, f"<s>{ASK[0]['content']}")
                assert choice.model_extra == {"probabilities": pytest.approx(expected, abs=1e-5)}
                assert choice.message.content == max(expected, key=expected.__getitem__)


def test_vllm_is_refused_with_a_reason(run: Path, tmp_path: Path) -> None:
    source = find_trained_model(str(run), "best", tmp_path)
    reason = f"{source.uri}: a classifier, of whose labels vLLM gives no probabilities"
    with pytest.raises(ConfigError) as caught:
        choose_engine("vllm", [source])
    assert reason in str(caught.value)
    assert str(decide("auto", vllm_obstacles(source), has_gpu=True)) == f"transformers ({reason})"

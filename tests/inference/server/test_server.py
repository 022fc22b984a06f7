"""The real `openai` client against a real server with a small pretrained model; `transformers` is the reference."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaForCausalLM

from llmforge.answers.sampling import Sampling, row_seed
from llmforge.errors import ConfigError
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.models import load_models
from llmforge.inference.server.run import Server, ServerOptions
from tests.export.trained_runs import lora_run
from tests.inference.server.servers import ASK, OPTIONS, Served, completed, serving, streamed, text_of, wait_until

pytestmark = pytest.mark.slow

HOT: dict[str, Any] = {"temperature": 1.5, "max_tokens": 15}


def said(client: openai.OpenAI, **asked: Any) -> str:
    return completed(client, **asked).choices[0].message.content or ""


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": ASK,
    "system": [{"role": "system", "content": "A story."}, *ASK],
    "two turns": [*ASK, {"role": "assistant", "content": "there was a dog."}, {"role": "user", "content": "Then he"}],
    "control tokens as text": [{"role": "user", "content": "<s> </s> One day"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]}
    ],
}


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the parts of a content joined."""
    contents = [message["content"] for message in messages]
    joined = [one if isinstance(one, str) else "".join(part["text"] for part in one) for one in contents]
    return [{**message, "content": content} for message, content in zip(messages, joined, strict=True)]


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_greedy_answers_equal_those_of_generate(
    messages: list[dict[str, Any]], client: openai.OpenAI, generator: Generator
) -> None:
    """Streamed and not, with the same ids as prompt."""
    conversation = generator.parse(plain(messages))
    expected = generator.answer(conversation, Sampling(max_tokens=60))
    assert len(expected) > 40
    reply = completed(client, messages=messages, max_tokens=60)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(generator.prompt_ids(conversation))
    stream = streamed(
        client,
        messages=messages,
        max_completion_tokens=60,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 20
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == reply.choices[0].finish_reason
    assert chunks[-1].usage == reply.usage


def test_the_job_says_what_the_request_leaves_open(client: openai.OpenAI, generator: Generator) -> None:
    """Here 20 tokens, without temperature."""
    reply = completed(client)
    assert reply.choices[0].message.content == generator.answer(generator.parse(ASK), Sampling())
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.usage.total_tokens) == (20, reply.usage.prompt_tokens + 20)


@pytest.mark.parametrize("stop", [".", ["never", " named Lily"], ["little girl", "girl"]])
def test_stop_texts_end_the_answer_and_are_no_part_of_it(stop: object, client: openai.OpenAI) -> None:
    whole = said(client, max_tokens=60)
    stops = [stop] if isinstance(stop, str) else stop
    assert isinstance(stops, list)
    expected = min((whole.split(text)[0] for text in stops if text in whole), key=len)
    assert expected != whole
    reply = completed(client, max_tokens=60, stop=stop)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason == "stop"
    assert text_of(streamed(client, max_tokens=60, stop=stop)) == expected


def test_seeds_and_several_answers(client: openai.OpenAI, generator: Generator) -> None:
    """A seed gives what it gives to `Generator`, whatever else is running; the answers of one request differ."""
    reply = completed(client, n=3, seed=7, **HOT)
    contents = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    expected = [
        generator.answer(generator.parse(ASK), Sampling(temperature=1.5, max_tokens=15, seed=row_seed(7, index)))
        for index in range(3)
    ]
    assert contents == expected
    assert len(set(contents)) == 3
    assert reply.usage is not None and reply.usage.completion_tokens == 45
    assert said(client, seed=7, **HOT) == contents[0] != said(client, seed=8, **HOT)
    assert len({said(client, **HOT) for _ in range(4)}) > 1
    chunks = list(streamed(client, n=3, seed=7, **HOT))
    assert [text_of(chunks, index) for index in range(3)] == contents


def test_narrow_sampling_is_greedy(client: openai.OpenAI) -> None:
    greedy = said(client, max_tokens=10)
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1}}):
        assert said(client, max_tokens=10, temperature=2, **narrow) == greedy


def test_logprobs_are_those_of_transformers(client: openai.OpenAI, generator: Generator, stories: Path) -> None:
    prompt = generator.prompt_ids(generator.parse(ASK))
    reply = completed(
        client,
        max_tokens=12,
        temperature=2,
        seed=1,
        logprobs=True,
        top_logprobs=4,
    )
    assert reply.choices[0].logprobs is not None
    found = reply.choices[0].logprobs.content
    assert found is not None
    decoder = generator.trained.decoder
    # The space that begins an answer is part of the template, so the first token of the text follows it.
    assert "".join(entry.token for entry in found).removeprefix(" ") == reply.choices[0].message.content
    ids = decoder.convert_tokens_to_ids([entry.token.replace(" ", "\u2581") for entry in found])
    model = LlamaForCausalLM.from_pretrained(stories)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert [entry.logprob for entry in found] == pytest.approx(expected[range(len(ids)), ids].tolist(), abs=1e-4)
    for place, entry in enumerate(found):
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            expected[place].topk(4).values.tolist(), abs=1e-4
        )
        assert entry.bytes == list(entry.token.encode())
    chunks = streamed(client, max_tokens=12, temperature=2, seed=1, logprobs=True, top_logprobs=4)
    scores = [chunk.choices[0].logprobs for chunk in chunks]
    pieces = [entry for one in scores if one for entry in one.content or ()]
    assert [(entry.token, entry.logprob) for entry in pieces] == [(entry.token, entry.logprob) for entry in found]


def test_raw_text_is_continued_without_a_format(client: openai.OpenAI, stories: Path, generator: Generator) -> None:
    model = LlamaForCausalLM.from_pretrained(stories)
    tokens = generator.trained.decoder.encode("<s>Lily had a", add_special_tokens=False)
    ids = torch.tensor([tokens])
    output = model.generate(ids, do_sample=False, max_new_tokens=15, attention_mask=torch.ones_like(ids))
    expected = generator.trained.decoder.decode(output[0], skip_special_tokens=True)
    for prompt in ("Lily had a", tokens):
        reply = client.completions.create(model="mine", prompt=prompt, max_tokens=15, temperature=0, logprobs=2)
        assert "Lily had a" + reply.choices[0].text == expected
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(tokens), 15)
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
        assert "".join(logprobs.tokens) == reply.choices[0].text
        assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:place])) for place in range(15)]
        assert [len(top) for top in logprobs.top_logprobs] == [2] * 15
    stream = client.completions.create(model="mine", prompt="Lily had a", max_tokens=15, temperature=0, stream=True)
    assert "Lily had a" + "".join(chunk.choices[0].text for chunk in stream) == expected
    with pytest.raises(openai.BadRequestError, match="found the token 512, allowed is 0 to 511"):
        client.completions.create(model="mine", prompt=[1, 512])
    with pytest.raises(openai.BadRequestError, match="prompt: the prompt has 601 tokens"):
        client.completions.create(model="mine", prompt=[1] * 601)
    stopped = client.completions.create(model="mine", prompt="Lily had a", max_tokens=15, temperature=0, stop=" ")
    assert stopped.choices[0].text == ""


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mine"]
    assert client.models.retrieve("mine").owned_by == "llmforge"
    with pytest.raises(openai.NotFoundError) as caught:
        completed(client, model="gpt-4")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "model: found 'gpt-4', allowed is mine" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"temperatur": 1}, "temperatur", "unsupported_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 401}, "max_tokens", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [*ASK, *ASK]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "a " * 150}], "max_tokens": 400},
            "messages",
            "context_length_exceeded",
        ),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_answered_is_refused_by_name(
    asked: dict[str, object], param: str, code: str | None, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        said(client, extra_body=asked)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert param.partition("[")[0] in caught.value.message or code == "context_length_exceeded"


def test_what_asks_for_nothing_is_no_parameter(client: openai.OpenAI) -> None:
    nothing = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "stop": None, "seed": None,
        "response_format": {"type": "text"}, "logprobs": False, "n": 1, "user": "somebody", "store": False,
    }  # fmt: skip
    assert said(client, extra_body=nothing) == said(client)
    answered = [*ASK, {"role": "assistant", "content": "a dog.", "refusal": None, "tool_calls": None}, *ASK]
    assert said(client, messages=answered)


MALFORMED = {
    "no JSON": (b"{", 400),
    "an array": (b"[]", 400),
    "no UTF-8": (b'{"model": "\xff"}', 400),
    "half a character": (b'{"model": "mine", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    "not a number": (b'{"model": "mine", "temperature": NaN, "messages": []}', 400),
    "too deep": (b"[" * 50_000, 400),
    "too large": (b" " * 100_001, 413),
    "empty": (b"", 400),
}


@pytest.mark.parametrize(("body", "status"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_bodies(body: bytes, status: int, server: Served, client: openai.OpenAI) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        reply = server.http().post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert said(client, max_tokens=1)


def test_other_requests(server: Served) -> None:
    http = server.http()
    body = json.dumps({"model": "mine", "messages": ASK})
    assert http.post("/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("GET", "/nothing", 404), ("POST", "/", 405)):
        reply = http.request(method, path)
        assert reply.status_code == status
        assert reply.json()["error"]["type"] == "invalid_request_error"
    assert http.get("/").text.startswith("<!doctype html>")
    assert http.get("/health").json() == {"status": "ready"}
    assert http.get("/health", headers={"Host": "evil.example:80"}).status_code == 403


def test_metrics(server: Served, client: openai.OpenAI) -> None:
    names = ("llmforge_prompt_tokens_total", "llmforge_answer_tokens_total", "llmforge_first_token_seconds_count")
    before = [server.counted(name) for name in names]
    reply = completed(client, max_tokens=9)
    assert reply.usage is not None
    after = [server.counted(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [reply.usage.prompt_tokens, 9, 1]
    wait_until(lambda: server.counted("llmforge_running_answers") == server.counted("llmforge_waiting_answers") == 0)
    text = server.http().get("/metrics").text
    assert 'llmforge_requests_total{code="200",path="/v1/chat/completions"}' in text
    assert "nothing" not in text


def test_many_at_once(client: openai.OpenAI, generator: Generator) -> None:
    """Streams of different lengths next to one another, each as if it were alone."""
    lengths = [3 + 7 * number % 50 for number in range(24)]
    expected = generator.answer(generator.parse(ASK), Sampling(max_tokens=60))

    def one(length: int) -> str:
        return text_of(streamed(client, max_tokens=length))

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(one, lengths))
    assert all(expected.startswith(answer) for answer in answers)
    assert [len(answer) for answer in answers] == [len(said(client, max_tokens=length)) for length in lengths]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(stream: bool, server: Served) -> None:
    body = json.dumps({"model": "mine", "messages": ASK, "max_tokens": 400, "n": 8, "stream": stream, "temperature": 2})
    before = server.counted("llmforge_answers_total")
    used = server.counted("llmforge_answer_tokens_total")
    with socket.create_connection(("127.0.0.1", server.server.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        wait_until(lambda: server.server.service.engine.num_running)
    wait_until(lambda: not (server.server.service.engine.num_running or server.server.service.engine.num_waiting))
    wait_until(lambda: server.counted("llmforge_answers_total") - before == 8)
    assert server.counted("llmforge_answer_tokens_total") - used < 8 * 390


def test_more_than_may_wait(run: Path, tmp_path: Path) -> None:
    with serving([run], tmp_path, engine=EngineLimits(max_concurrency=1, max_waiting=2)) as server:
        client = server.client()
        with pytest.raises(openai.RateLimitError) as caught:
            completed(client, n=4)
        assert caught.value.response.headers["Retry-After"] == "1"
        assert caught.value.code == "rate_limit_exceeded"
        reply = completed(client, n=3, max_tokens=2)
        assert len(reply.choices) == 3


def test_an_api_key(run: Path, tmp_path: Path) -> None:
    with serving([run], tmp_path, api_key="s3cret") as server:
        for wrong in ("wrong", "s3cre", "s3cret2", "é"):
            reply = server.http().get("/v1/models", headers=[(b"Authorization", f"Bearer {wrong}".encode())])
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        assert [model.id for model in server.client("s3cret").models.list()] == ["mine"]
        http = server.http()
        assert [http.get(path).status_code for path in ("/metrics", "/health", "/")] == [401, 200, 200]
        assert http.get("/health", headers={"Host": "llm.example"}).status_code == 200


def test_draining(run: Path, tmp_path: Path) -> None:
    """What runs ends whole; what comes later is refused."""
    with serving([run], tmp_path) as server:
        client = server.client()
        stream = streamed(client, max_tokens=300)
        first = next(stream)
        draining = threading.Thread(target=server.server.drain, args=(60, threading.Event()))
        draining.start()
        wait_until(lambda: server.server.service.is_draining)
        http = server.http()
        health = http.get("/health")
        with pytest.raises(openai.APIStatusError) as caught:
            completed(client)
        assert (health.status_code, caught.value.status_code) == (503, 503)
        chunks = [first, *stream]
        draining.join(timeout=60)
        assert not draining.is_alive()
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_what_is_not_whole_at_the_end_says_so(run: Path, tmp_path: Path) -> None:
    with serving([run], tmp_path) as server:
        client = server.client()
        stream = streamed(client, max_tokens=400, n=16, temperature=2)
        next(stream)
        hurry = threading.Event()
        hurry.set()
        server.server.drain(60, hurry)
        server.server.service.engine.stop()
        with pytest.raises(openai.APIError, match="stopped before the answer was whole"):
            list(stream)


def test_two_adapters_in_one_batch(stories: Path, tmp_path: Path) -> None:
    """Asked at the same time, each answers as it does alone."""
    small = lora_run(stories, tmp_path / "small").uri
    large = lora_run(stories, tmp_path / "large", {"r": 8, "target_modules": ["q_proj", "k_proj", "up_proj"]}).uri
    expected = {}
    for name, uri in (("small", small), ("large", large)):
        generator = open_generator(find_trained_model(str(uri), "best", tmp_path / "cache"))
        expected[name] = generator.answer(generator.parse(ASK), Sampling(max_tokens=30))
    assert expected["small"] != expected["large"]
    with serving([small, large], tmp_path / "cache", names=["small", "large"]) as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["small", "large"]

        def asked(name: str) -> str:
            return said(client, model=name, max_tokens=30)

        with ThreadPoolExecutor(8) as threads:
            names = ["small", "large"] * 6
            assert list(threads.map(asked, names)) == [expected[name] for name in names]


def test_runs_that_cannot_be_served_together(run: Path, stories: Path, tmp_path: Path) -> None:
    def refusal(*runs: Path, names: tuple[str, ...] = ()) -> str:
        sources = [find_trained_model(str(one), "best", tmp_path / "cache") for one in runs]
        with pytest.raises(ConfigError) as caught:
            load_models(sources, names, OPTIONS)
        return str(caught.value)

    adapter = lora_run(stories, tmp_path / "one").uri
    assert "found a twice; give every run a name" in refusal(adapter, adapter, names=("a", "a"))
    assert "--name: found 1 for 2 runs" in refusal(adapter, adapter, names=("a",))
    assert "trained all weights" in refusal(adapter, run, names=("a", "b"))
    wide = lora_run(stories, tmp_path / "dora", {"use_dora": True}).uri
    assert "use_dora, which cannot share a batch" in refusal(adapter, wide, names=("a", "b"))
    other = lora_run(stories, tmp_path / "bf16", precision="bf16").uri
    assert f"found the base {stories} in bf16, allowed is {stories} in fp32" in refusal(
        adapter, other, names=("a", "b")
    )


def test_an_address_that_is_taken(server: Served, run: Path, tmp_path: Path) -> None:
    models = load_models([find_trained_model(str(run), "best", tmp_path)], (), OPTIONS)
    with pytest.raises(
        ConfigError, match=rf"--port {server.server.port}: found an address that cannot be used: Address already"
    ):
        Server(models, ServerOptions(port=server.server.port))

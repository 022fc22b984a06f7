"""Bodies of requests: what is read, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.answers.sampling import Sampling
from llmforge.inference.server.api_errors import ApiError
from llmforge.inference.server.requests import ChatRequest, CompletionRequest, parse_request

MINIMAL = {"model": "a", "messages": [{"role": "user", "content": "b"}]}


def chat(**fields: Any) -> ChatRequest:
    return parse_request(json.dumps({**MINIMAL, **fields}).encode(), ChatRequest)


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(body, ChatRequest)
    return caught.value


def completion_refusal(**fields: Any) -> str:
    with pytest.raises(ApiError) as caught:
        parse_request(json.dumps({"model": "a", **fields}).encode(), CompletionRequest)
    return caught.value.message


def test_what_is_left_out_is_left_to_the_job() -> None:
    asked = chat()
    assert asked.sampling == Sampling()
    assert (asked.n, asked.stream, asked.num_top) == (1, False, None)


def test_every_parameter() -> None:
    asked = chat(
        max_completion_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=-3, stop=["x", "y"], n=2,
        stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert asked.sampling == Sampling(7, 0.5, 0.9, 5, 0.1, -3, ("x", "y"))
    assert (asked.n, asked.stream, asked.stream_options.include_usage, asked.num_top) == (2, True, True, 2)
    assert chat(stop="x", logprobs=True).sampling.stop == ("x",)
    assert chat(logprobs=True).num_top == 0


def test_a_text_or_ids_to_be_continued() -> None:
    for prompt in ("a", [1, 2]):
        asked = parse_request(json.dumps({"model": "a", "prompt": prompt, "logprobs": 0}).encode(), CompletionRequest)
        assert (asked.prompt, asked.num_top) == (prompt, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [1]}, "tools: this server does not support it; leave it out"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number (found 'hot')"),
        ({"temperature": True}, "temperature: Input should be a valid number (found True)"),
        ({"n": 17}, "n: Input should be less than or equal to 16 (found 17)"),
        ({"stop": ["a", 5]}, "stop[1]: Input should be a valid string (found 5)"),
        ({"stop": 5}, "stop: Input should be a valid string (found 5)"),
        ({"stream_options": {"include": 1}}, "stream_options.include: this server does not support it; leave it out"),
        ({"messages": ["a"]}, "messages[0]: Input should be a valid dictionary (found 'a')"),
        (
            {"n": 0, "seed": "1"},
            "n: Input should be greater than or equal to 1 (found 0)\n"
            "seed: Input should be a valid integer (found '1')",
        ),
    ],
)  # fmt: skip
def test_refusals_name_the_field(fields: dict[str, Any], message: str) -> None:
    error = refusal(json.dumps({**MINIMAL, **fields}).encode())
    assert (error.status, error.message) == (400, message)
    assert error.param == message.partition(":")[0]


def test_what_is_missing() -> None:
    error = refusal(b"{}")
    assert error.message == "model: Field required\nmessages: Field required"
    assert completion_refusal(prompt=["a"]) == "prompt[0]: Input should be a valid integer (found 'a')"
    assert completion_refusal(prompt="a", echo=True) == "echo: this server does not support it; leave it out"
    assert completion_refusal() == "prompt: Field required"


@given(body=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    assert refusal(body).status == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from([*ChatRequest.model_fields, "tools", "x"]), value=_JSON)
def test_any_value_is_read_or_refused_by_its_name(name: str, value: object) -> None:
    body = json.dumps({**MINIMAL, name: value}).encode()
    try:
        parse_request(body, ChatRequest)
    except ApiError as error:
        assert error.status == 400
        assert error.code == "invalid_json" or name in error.message

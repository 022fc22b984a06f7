"""What may be asked: bodies of `/v1/chat/completions` and `/v1/completions`, checked.

In: the bytes of a body. Out: a `ChatRequest` or a `CompletionRequest`, or an `ApiError` that names the field. What
OpenAI's API knows and this server cannot do is refused by name, never ignored; a value that asks for nothing (`null`,
`frequency_penalty: 0`) is no different from leaving the field out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, ValidationError
from pydantic_core import ErrorDetails, from_json

from llmforge.answers.sampling import Sampling
from llmforge.inference.server.api_errors import ApiError

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
_NOTHING_ASKED: dict[str, JsonValue] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "store": False,
    "suffix": "",
    "tools": [],
}
"""Values by which a client says that it does not use something."""

_Text = Annotated[str, Field(min_length=1)]
_ByKind = Discriminator(lambda value: "a list" if isinstance(value, list) else "a text")
"""So that a refusal is about the alternative that was meant."""
_Stop = Annotated[
    Annotated[_Text, Tag("a text")] | Annotated[list[_Text], Field(max_length=MAX_STOPS), Tag("a list")], _ByKind
]
_Prompt = Annotated[Annotated[_Text, Tag("a text")] | Annotated[list[int], Field(min_length=1), Tag("a list")], _ByKind]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool = False


class _Request(_Body):
    prompt_field: ClassVar[str]
    """Name of the field that holds what is to be answered."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: _Stop = []
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    threshold: float | None = Field(None, gt=0, lt=1)
    """Of a classifier with two labels: probability from which it decides for the positive one."""
    user: str | None = None
    """Who asks, by the client's own account; no part of the answer depends on it."""

    @property
    def num_wanted(self) -> int | None:
        """Longest answer that was asked for."""
        return self.max_tokens

    @property
    def wanted_by(self) -> str:
        """Name of the field that `num_wanted` is from."""
        return "max_tokens"

    @property
    def sampling(self) -> Sampling:
        """What is asked for differently than the job said."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return Sampling(self.num_wanted, self.temperature, self.top_p, self.top_k, self.min_p, self.seed, stop)


class ChatRequest(_Request):
    """A conversation to be answered."""

    prompt_field = "messages"
    messages: list[dict[str, JsonValue]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def num_wanted(self) -> int | None:
        """Longest answer that was asked for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_by(self) -> str:
        """Name of the field that `num_wanted` is from."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def num_top(self) -> int | None:
        """How many tokens to score beside the one taken; None for no scores."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """Text, or token ids, to be continued as they are."""

    prompt_field = "prompt"
    prompt: _Prompt
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def num_top(self) -> int | None:
        """How many tokens to score beside the one taken; None for no scores."""
        return self.logprobs


_Kind = TypeVar("_Kind", ChatRequest, CompletionRequest)


def parse_request(body: bytes, kind: type[_Kind]) -> _Kind:
    """Read a body. Raises `ApiError`."""
    fields = _fields(body)
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False)) from error
    _check_together(request, fields)
    return request


def _fields(body: bytes) -> dict[str, JsonValue]:
    """What a body asks for, without what asks for nothing."""
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON in UTF-8: {error}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object; expected an object with `model`", code="invalid_json")
    return {name: value for name, value in found.items() if value is not None and not _asks_nothing(name, value)}


def _asks_nothing(name: str, value: JsonValue) -> bool:
    neutral = _NOTHING_ASKED.get(name)
    return neutral is not None and value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _refusal(problems: list[ErrorDetails]) -> ApiError:
    """All problems in one message; `param` is the first."""
    lines = []
    for problem in problems:
        place = _place(problem["loc"])
        found = "" if problem["type"] in ("missing", "extra_forbidden") else f" (found {_short(problem['input'])})"
        text = (
            "this server does not support it; leave it out" if problem["type"] == "extra_forbidden" else problem["msg"]
        )
        lines.append(f"{place}: {text}{found}")
    code = "unsupported_parameter" if problems[0]["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(400, "\n".join(dict.fromkeys(lines)), param=_place(problems[0]["loc"]), code=code)


def _place(location: tuple[int | str, ...]) -> str:
    """`messages[2].role`; pydantic's names of the alternatives of a type are left out."""
    text = str(location[0])
    for part in location[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            text += f".{part}"
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_together(request: ChatRequest | CompletionRequest, fields: dict[str, JsonValue]) -> None:
    """Raises `ApiError` for fields that contradict one another."""
    if "stream_options" in fields and not request.stream:
        raise ApiError(400, "stream_options: only with stream: true; leave it out", param="stream_options")
    if isinstance(request, ChatRequest):
        if "top_logprobs" in fields and not request.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs: true; add that", param="top_logprobs")
        if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
            message = "max_tokens and max_completion_tokens: found two values, allowed is one; leave out max_tokens"
            raise ApiError(400, message, param="max_tokens")

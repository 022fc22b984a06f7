"""Refusals in the shape that OpenAI's API gives them, which its clients understand."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is not answered."""

    status: int
    """HTTP status."""
    message: str
    """What was found, what is allowed, what to do."""
    kind: str = "invalid_request_error"
    param: str | None = None
    """The field of the request that is wrong."""
    code: str | None = None
    retry_after_seconds: int | None = None

    @property
    def body(self) -> dict[str, JsonValue]:
        """What the client reads."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unknown_model(name: str, known: list[str]) -> ApiError:
    """A `model` that is not served."""
    message = f"model: found {name!r}, allowed is {' or '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def too_long(num_tokens: int, num_wanted: int | None, longest: int, param: str) -> ApiError:
    """A prompt that leaves no room for the answer asked for."""
    answer = "" if num_wanted is None else f" and the answer may have {num_wanted}"
    message = (
        f"the prompt has {num_tokens} tokens{answer}; prompt and answer together may have {longest}: "
        "shorten it, or ask for fewer tokens"
    )
    return ApiError(400, f"{param}: {message}", param=param, code="context_length_exceeded")


def busy() -> ApiError:
    """As many answers are asked for as may wait."""
    message = "as many requests are waiting as the server allows; try again in a moment"
    return ApiError(429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after_seconds=1)


def draining() -> ApiError:
    """The server is being stopped."""
    message = "the server is shutting down and takes no new requests; ask another one, or try again later"
    return ApiError(503, message, "server_error", code="shutting_down", retry_after_seconds=5)


def failed() -> ApiError:
    """The engine has ended while an answer was being made."""
    return ApiError(500, "the server failed or was stopped before the answer was whole; try again", "server_error")

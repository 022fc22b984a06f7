"""A model under the name by which it is asked for: requests to prompts and to generations.

In: checked requests. Out: the ids of a prompt, by the code that renders training rows, and `Generation`s with the job's
own sampling wherever a request says nothing. Refusals are `ApiError`s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import JsonValue

from llmforge.answers.answer_format import AnswerFormat
from llmforge.answers.asked import check_asked
from llmforge.answers.sampling import NOTHING_ASKED, Sampling, row_seed
from llmforge.answers.stops import Stops
from llmforge.config.classifier import Classifier
from llmforge.errors import ConfigError, DataError
from llmforge.inference.server.answer import AnswerRules
from llmforge.inference.server.api_errors import ApiError, too_long
from llmforge.inference.server.generation import Deliver, Generation, Labelling
from llmforge.inference.server.requests import ChatRequest, CompletionRequest
from llmforge.prompt.messages import check_characters
from llmforge.prompt.render import Segment

_MESSAGE_KEYS = frozenset({"role", "content"})


@dataclass(frozen=True)
class AnswerLimits:
    """How long prompts and answers may be, whoever asks."""

    max_tokens: int = 4096
    """Of one answer."""
    max_total_tokens: int = 32768
    """Of a prompt and its answer."""


@dataclass(frozen=True)
class ServedModel:
    """One trained model."""

    name: str
    answer_format: AnswerFormat
    created: int
    """When its checkpoint was saved, in seconds since 1970."""
    vocabulary_size: int
    """Ids that the model knows, from 0."""
    limits: AnswerLimits
    adapter: str | None = None
    """Name of its adapter, where several share the base."""
    classifier: Classifier | None = None
    """None for a model that writes text."""

    @property
    def longest(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.limits.max_total_tokens, self.answer_format.context_length or self.limits.max_total_tokens)

    def prompt(self, request: ChatRequest | CompletionRequest) -> list[int]:
        """The ids that the model is given. Raises `ApiError`."""
        if isinstance(request, ChatRequest):
            return self._chat_prompt(request.messages)
        if isinstance(request.prompt, list):
            return self._checked_ids(request.prompt)
        try:
            check_characters(request.prompt, "prompt")
        except DataError as error:
            raise ApiError(400, str(error), param="prompt") from error
        bos = self.answer_format.prompt_format.bos
        segments = [*([Segment(bos)] if bos else []), Segment(request.prompt, is_template=False)]
        return self.answer_format.encoder.encode_prompt(segments)

    def generations(
        self, request: ChatRequest | CompletionRequest, prompt: list[int], deliver: Callable[[int], Deliver]
    ) -> list[Generation]:
        """The `n` answers to a prompt; `deliver(index)` takes the pieces of one. Raises `ApiError`.

        A classifier answers alike whatever is asked of sampling and length: many clients always ask for some.
        """
        self._check_threshold(request.threshold)
        room = self._room(len(prompt), request)
        asked = request.sampling if self.classifier is None else NOTHING_ASKED
        sampling = replace(asked, max_tokens=room).over(self.answer_format.generation)
        rules = self._rules(request, sampling, room)
        labelling = None if self.classifier is None else Labelling(self.classifier, request.threshold)
        return [
            Generation(prompt, rules, deliver(index), _drawn(sampling, index), request.num_top, self.adapter, labelling)
            for index in range(request.n)
        ]

    def token_text(self, token: int) -> str:
        """A token as it stands in a text; a control token by its name."""
        context = self.answer_format.context
        decode = self.answer_format.decode
        text = decode([*context, token])[len(decode(context)) :]
        return text or str(self.answer_format.decoder.convert_ids_to_tokens(token))

    def _check_threshold(self, threshold: float | None) -> None:
        try:
            check_asked(self.classifier, NOTHING_ASKED, threshold)
        except ConfigError as error:
            raise ApiError(400, str(error), param="threshold", code="unsupported_parameter") from error

    def _chat_prompt(self, messages: list[dict[str, JsonValue]]) -> list[int]:
        try:
            conversation = self.answer_format.parse([_message(raw, index) for index, raw in enumerate(messages)])
        except DataError as error:
            raise ApiError(400, f"messages: {error}", param="messages", code="invalid_value") from error
        prompt = self.answer_format.prompt_ids(conversation)
        if not prompt:
            message = "the prompt is empty: the format puts nothing around the messages, and they have no text"
            raise ApiError(400, message, param="messages", code="invalid_value")
        return prompt

    def _checked_ids(self, ids: list[int]) -> list[int]:
        wrong = next((id_ for id_ in ids if not 0 <= id_ < self.vocabulary_size), None)
        if wrong is not None:
            message = f"prompt: found the token {wrong}, allowed is 0 to {self.vocabulary_size - 1}"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        return ids

    def _room(self, num_prompt_tokens: int, request: ChatRequest | CompletionRequest) -> int:
        """Most tokens of an answer. What the job asks for by itself is cut to what there is."""
        most, wanted = self.limits.max_tokens, request.num_wanted if self.classifier is None else None
        if wanted is not None and wanted > most:
            message = f"{request.wanted_by}: found {wanted}, allowed is 1 to {most}; ask for fewer"
            raise ApiError(400, message, param=request.wanted_by, code="invalid_value")
        room = self.longest - num_prompt_tokens
        if room < (wanted or 1):
            raise too_long(num_prompt_tokens, wanted, self.longest, request.prompt_field)
        return wanted or min(self.answer_format.generation.max_tokens, most, room)

    def _rules(self, request: ChatRequest | CompletionRequest, sampling: Sampling, room: int) -> AnswerRules:
        is_chat = isinstance(request, ChatRequest)
        return AnswerRules(
            stops=self.answer_format.stops(sampling) if is_chat else self._text_stops(sampling.stop),
            decode=self.answer_format.decode,
            context=tuple(self.answer_format.context),
            head=self.answer_format.answer_head if is_chat else "",
            max_tokens=room,
        )

    def _text_stops(self, stops: tuple[str, ...]) -> Stops:
        """What ends a raw text: the model's own end, and what was asked for."""
        special_ids = self.answer_format.encoder.special_ids
        asked = {special_ids[stop] for stop in stops if stop in special_ids}
        texts = tuple(stop for stop in stops if stop not in special_ids)
        return Stops(self.answer_format.end_of_sequence_ids | asked, (), texts)


def _drawn(sampling: Sampling, index: int) -> Sampling:
    """How one of several answers is drawn."""
    return sampling if sampling.seed is None else replace(sampling, seed=row_seed(sampling.seed, index))


def _message(raw: dict[str, JsonValue], index: int) -> dict[str, JsonValue]:
    """A message without what says nothing, its content as one text. Raises `ApiError`."""
    message: dict[str, JsonValue] = {key: value for key, value in raw.items() if value is not None and value != []}
    unknown = sorted(message.keys() - _MESSAGE_KEYS)
    if unknown:
        raise _unsupported(f"messages[{index}].{unknown[0]}", "this server does not support it; leave it out")
    content = message.get("content")
    if isinstance(content, list):
        place = f"messages[{index}].content"
        message["content"] = "".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))
    return message


def _part(part: JsonValue, place: str) -> str:
    """The text of a part of a content. Raises `ApiError`."""
    if isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text":
        text = part["text"]
        if isinstance(text, str):
            return text
    raise _unsupported(place, 'allowed are parts {"type": "text", "text": ...}: the model knows text only')


def _unsupported(place: str, reason: str) -> ApiError:
    return ApiError(400, f"{place}: {reason}", param=place, code="unsupported_parameter")

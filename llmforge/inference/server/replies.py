"""What a client reads: the objects of OpenAI's API, as values for JSON.

In: pieces of answers. Out: completions, chunks of a stream, usage, log probabilities, and in choices of a classifier
`probabilities`, which OpenAI's API does not know. The two ways to ask differ in these objects only.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from llmforge.answers.answer_text import UNFINISHED
from llmforge.inference.server.answer import FinishReason, Piece, ScoredToken

Json = dict[str, JsonValue]
TokenText = Callable[[int], str]


@dataclass(frozen=True)
class Choice:
    """One of the answers to a request, whole."""

    text: str
    scores: tuple[ScoredToken, ...]
    num_tokens: int
    finish_reason: FinishReason
    probabilities: Mapping[str, float] | None = None
    """Of every label, where the model is a classifier."""

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Choice:
        """All pieces of an answer, joined."""
        last = pieces[-1]
        assert last.finish_reason is not None
        scores = tuple(score for piece in pieces for score in piece.scores)
        text = "".join(piece.text for piece in pieces)
        return cls(text, scores, last.num_tokens, last.finish_reason, last.probabilities)


@dataclass(frozen=True)
class Usage:
    """What a request took."""

    num_prompt_tokens: int
    num_answer_tokens: int

    @property
    def json(self) -> Json:
        """As OpenAI names it."""
        total = self.num_prompt_tokens + self.num_answer_tokens
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_answer_tokens,
            "total_tokens": total,
        }


@dataclass(frozen=True)
class Reply:
    """What all objects of one reply share."""

    model: str
    token_text: TokenText
    is_chat: bool
    with_scores: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        """The reply where nothing was streamed."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        found: list[JsonValue] = []
        for index, choice in enumerate(choices):
            content: Json = (
                {"message": {"role": "assistant", "content": choice.text}} if self.is_chat else {"text": choice.text}
            )
            scores = self._scores(choice.scores, 0)
            found.append(self._part(index, content, scores, choice))
        return {**self._head(kind), "choices": found, "usage": usage.json}

    def opening(self, index: int) -> Json | None:
        """The chunk that begins an answer of a chat."""
        if not self.is_chat:
            return None
        return self._chunk([self._part(index, {"delta": {"role": "assistant", "content": ""}}, None, None)])

    def chunk(self, index: int, piece: Piece, offset: int) -> Json:
        """One piece of an answer; `offset` counts the characters before it."""
        content: Json = (
            {"delta": {"content": piece.text} if piece.text else {}} if self.is_chat else {"text": piece.text}
        )
        scores = self._scores(piece.scores, offset)
        return self._chunk([self._part(index, content, scores, piece)])

    def usage_chunk(self, usage: Usage) -> Json:
        """What follows all pieces where usage was asked for."""
        return {**self._chunk([]), "usage": usage.json}

    def _part(self, index: int, content: Json, scores: JsonValue, of: Choice | Piece | None) -> Json:
        reason = None if of is None else of.finish_reason
        part: Json = {"index": index, **content, "logprobs": scores, "finish_reason": reason}
        return part if of is None or of.probabilities is None else {**part, "probabilities": {**of.probabilities}}

    def _chunk(self, choices: list[JsonValue]) -> Json:
        return {**self._head("chat.completion.chunk" if self.is_chat else "text_completion"), "choices": choices}

    def _head(self, kind: str) -> Json:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _scores(self, scores: Sequence[ScoredToken], offset: int) -> JsonValue:
        if not self.with_scores:
            return None
        return self._chat_scores(scores) if self.is_chat else self._text_scores(scores, offset)

    def _chat_scores(self, scores: Sequence[ScoredToken]) -> Json:
        content: list[JsonValue] = []
        for score in scores:
            top: list[JsonValue] = [self._entry(token, logprob) for token, logprob in score.top]
            content.append({**self._entry(score.token_id, score.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        text = self.token_text(token)
        # A token may be a part of a character only.
        return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}

    def _text_scores(self, scores: Sequence[ScoredToken], offset: int) -> Json:
        texts = [self.token_text(score.token_id) for score in scores]
        offsets: list[JsonValue] = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
        top: list[JsonValue] = [{self.token_text(token): logprob for token, logprob in score.top} for score in scores]
        return {
            "tokens": [*texts],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def model_object(name: str, created: int) -> Json:
    """A model in the list of those that are served."""
    return {"id": name, "object": "model", "created": created, "owned_by": "llmforge"}

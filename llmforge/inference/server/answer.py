"""One answer as its tokens come: the text that is sure, the scores that belong to it, and why it ended.

In: tokens one by one, as a model takes them. Out: `Piece`s whose texts joined are the answer of `AnswerFormat.text`. It
runs no model and knows nothing of a request.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmforge.answers.answer_text import Decode, HeadCut, TokenDecoder
from llmforge.answers.stops import Stops, TextCut, TokenCut

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log probability, and the most probable ones at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token, log probability), the most probable first."""


@dataclass(frozen=True)
class Piece:
    """What has become sure since the piece before."""

    text: str
    num_tokens: int
    """Tokens that the model has taken for this answer so far, stops included."""
    scores: tuple[ScoredToken, ...] = ()
    """Of the tokens that the text is made of, where scores were asked for."""
    finish_reason: FinishReason | None = None
    """Set in the last piece."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, in the one piece of a classifier."""


@dataclass(frozen=True)
class AnswerRules:
    """How tokens become the text of an answer."""

    stops: Stops
    decode: Decode
    context: tuple[int, ...]
    """Tokens of any word, behind which the answer is decoded."""
    head: str
    """What stands before the content of an answer and is no part of it."""
    max_tokens: int


class AnswerReader:
    """Reads one answer."""

    def __init__(self, rules: AnswerRules) -> None:
        self._max_tokens = rules.max_tokens
        self._tokens = TokenCut(rules.stops)
        self._decoder = TokenDecoder(rules.decode, rules.context)
        self._head = HeadCut(rules.head)
        self._cut = TextCut(rules.stops.texts)
        self._num_tokens = 0
        self._num_decoded = 0
        self._num_shown = 0
        self._held: deque[ScoredToken] = deque()
        """Scores of tokens that may yet be part of a stop."""
        self._placed: deque[tuple[int, ScoredToken]] = deque()
        """(where in the text the token begins, its score), not yet shown."""

    def push(self, token: int, score: ScoredToken | None = None) -> Piece | None:
        """Read a token; None while nothing is sure. After a piece with a `finish_reason` nothing may be pushed."""
        self._num_tokens += 1
        if score is not None:
            self._held.append(score)
        text = self._read(self._tokens.push(token))
        if self._tokens.is_complete:
            return self._end(text, "stop")
        if self._cut.is_complete:
            return self._last(text, "stop")
        if self._num_tokens == self._max_tokens:
            return self._end(text + self._read(self._tokens.rest()), "length")
        return self._piece(text, None)

    def _read(self, tokens: tuple[int, ...]) -> str:
        shown = ""
        for token in tokens:
            if self._held:
                self._placed.append((self._num_decoded, self._held.popleft()))
            shown += self._show(self._head.push(self._decoder.push(token)))
        return shown

    def _show(self, text: str) -> str:
        self._num_decoded += len(text)
        return "" if self._cut.is_complete else self._cut.push(text)

    def _end(self, text: str, reason: FinishReason) -> Piece:
        """The last piece where no more tokens come."""
        if not self._cut.is_complete:
            text += self._show(self._head.push(self._decoder.rest()) + self._head.rest())
        if self._cut.is_complete:
            return self._last(text, "stop")
        return self._last(text + self._cut.rest(), reason)

    def _last(self, text: str, reason: FinishReason) -> Piece:
        piece = self._piece(text, reason)
        assert piece is not None
        return piece

    def _piece(self, text: str, reason: FinishReason | None) -> Piece | None:
        self._num_shown += len(text)
        scores = []
        while self._placed and (self._placed[0][0] < self._num_shown or self._is_behind_text(reason)):
            scores.append(self._placed.popleft()[1])
        if not text and not scores and reason is None:
            return None
        return Piece(text, self._num_tokens, tuple(scores), reason)

    def _is_behind_text(self, reason: FinishReason | None) -> bool:
        """Whether only tokens at the end are left, without a text of their own; a text stop leaves out what follows."""
        return reason is not None and not self._cut.is_complete

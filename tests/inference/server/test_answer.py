"""Tokens to pieces of an answer: the same text as `cut_text` gives, scores that belong to it, reasons to end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.answers.answer_text import decode_tokens, without_head
from llmforge.answers.stops import Stops, cut_text, cut_tokens
from llmforge.inference.server.answer import AnswerReader, AnswerRules, Piece, ScoredToken

LETTERS = "abc "


def decode(tokens: Sequence[int]) -> str:
    """One letter a token, 9 without text; as decoders do, without a space at the begin."""
    return "".join(LETTERS[token] for token in tokens if token != 9).removeprefix(" ")


def rules(stops: Stops, max_tokens: int = 100, head: str = "") -> AnswerRules:
    return AnswerRules(stops, decode, (0,), head, max_tokens)


def read(tokens: Sequence[int], asked: AnswerRules) -> list[Piece]:
    """All pieces of an answer, with a score for every token: its place."""
    reader, pieces = AnswerReader(asked), []
    for place, token in enumerate(tokens):
        piece = reader.push(token, ScoredToken(token, -float(place)))
        if piece is not None:
            pieces.append(piece)
            if piece.finish_reason:
                break
    return pieces


TOKENS = st.lists(st.sampled_from([0, 1, 2, 3, 9]), min_size=1, max_size=12)
STOP_TEXTS = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2).map(tuple)
STOP_SEQUENCES = st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3).map(tuple), max_size=2).map(
    tuple
)


@given(tokens=TOKENS, texts=STOP_TEXTS, sequences=STOP_SEQUENCES, head=st.sampled_from(["", " ", "a"]))
def test_the_text_is_that_of_the_streams(
    tokens: list[int], texts: tuple[str, ...], sequences: tuple[tuple[int, ...], ...], head: str
) -> None:
    stops = Stops(frozenset({9}), sequences, texts)
    pieces = read(tokens, rules(stops, len(tokens), head))
    expected = cut_text(without_head(decode_tokens(cut_tokens(tokens, stops), decode, [0]), head), texts)
    assert "".join(piece.text for piece in pieces) == "".join(expected)
    assert [piece.finish_reason is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text or piece.scores for piece in pieces[:-1])


@given(tokens=TOKENS, texts=STOP_TEXTS)
def test_scores_are_those_of_the_tokens_in_the_text(tokens: list[int], texts: tuple[str, ...]) -> None:
    """Here every token is one letter."""
    tokens = [token for token in tokens if token != 9] or [0]
    pieces = read(tokens, rules(Stops(frozenset(), (), texts), len(tokens)))
    text, scores = "", list[ScoredToken]()
    for piece in pieces:
        text, scores = text + piece.text, [*scores, *piece.scores]
        assert len(scores) == len(text)
    assert "".join(LETTERS[score.token_id] for score in scores) == text
    assert [score.logprob for score in scores] == [-float(place) for place in range(len(scores))]


@pytest.mark.parametrize(
    ("tokens", "stops", "max_tokens", "text", "num_tokens", "reason"),
    [
        ([0, 1, 9, 2], Stops(frozenset({9}), (), ()), 100, "ab", 3, "stop"),
        ([0, 1, 2, 0], Stops(frozenset(), ((1, 2),), ()), 100, "a", 3, "stop"),
        ([0, 1, 2, 0], Stops(frozenset(), (), ("bc",)), 100, "a", 3, "stop"),
        ([0, 1, 2, 0], Stops(frozenset(), ((1, 1),), ()), 2, "ab", 2, "length"),
        ([0, 1, 2, 0], Stops(frozenset(), (), ("bb",)), 2, "ab", 2, "length"),
        # What a token stop held back completes a text stop when nothing follows.
        ([0, 1, 2, 0], Stops(frozenset(), ((1, 1),), ("b",)), 2, "a", 2, "stop"),
    ],
)
def test_why_an_answer_ends(
    tokens: list[int], stops: Stops, max_tokens: int, text: str, num_tokens: int, reason: str
) -> None:
    pieces = read(tokens, rules(stops, max_tokens))
    assert "".join(piece.text for piece in pieces) == text
    assert (pieces[-1].num_tokens, pieces[-1].finish_reason) == (num_tokens, reason)

"""What ends an answer, and cutting streams there however they are split."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.answers.stops import Stops, cut_text, cut_tokens, find_stops
from llmforge.config.prompt_format import GenerationConfig, PromptFormat, StoppingSequence
from tests.prompt.formats import ADJACENT, CHATML, LLAMA_2, LLAMA_3, MISTRAL, PLAIN, VERBATIM

SPECIAL_IDS = {"<s>": 1, "</s>": 2, "<|eot_id|>": 128009, "<|end_of_text|>": 128001}


def stops_of(
    prompt_format: PromptFormat, *stopping: StoppingSequence, end_of_sequence_ids: tuple[int, ...] = ()
) -> tuple[set[int], tuple[tuple[int, ...], ...], tuple[str, ...]]:
    generation = GenerationConfig(stopping_sequences=stopping or None)
    stops = find_stops(prompt_format, generation, SPECIAL_IDS, end_of_sequence_ids)
    return set(stops.token_ids), stops.token_sequences, stops.texts


@pytest.mark.parametrize(
    ("prompt_format", "token_ids", "texts"),
    [
        (LLAMA_3, {128009}, ()),
        (LLAMA_2, {2}, ()),  # " </s><s>": the terminator ends with its first control token
        (MISTRAL, {2}, ()),
        (ADJACENT, {2}, ()),
        (CHATML, set(), ("<|im_end|>\n",)),  # no control token of this tokenizer
        (PLAIN, set(), ("\n\n",)),
        (VERBATIM, set(), ()),
    ],
)
def test_the_terminator_of_the_format_is_a_stop(
    prompt_format: PromptFormat, token_ids: set[int], texts: tuple[str, ...]
) -> None:
    assert stops_of(prompt_format) == (token_ids, (), texts)


def test_stops_of_the_job_and_of_the_model() -> None:
    stopping = ("<|end_of_text|>", "\nUser:", 7, (8, 9), (10,), "</s>")
    assert stops_of(LLAMA_3, *stopping, end_of_sequence_ids=(2, 5)) == (
        {128009, 128001, 7, 2, 5},
        ((8, 9), (10,)),
        ("\nUser:",),
    )
    assert stops_of(PLAIN, "###") == (set(), (), ("\n\n", "###"))


def before_first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text when, read letter by letter, a stop is first complete; of several at once the longest counts."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text over few letters, so that stops occur, overlap and nearly occur; and a way to split it."""
    pieces = draw(st.lists(st.text("abc", min_size=1, max_size=4), max_size=8))
    return "".join(pieces), pieces


@given(split=split_texts(), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple))
def test_text_is_cut_where_the_first_stop_begins(split: tuple[str, list[str]], stops: tuple[str, ...]) -> None:
    text, pieces = split
    cut = list(cut_text(pieces, stops))
    assert "".join(cut) == before_first_stop(text, stops)
    assert all(cut)
    assert "".join(cut_text(text, stops)) == "".join(cut)


@given(
    tokens=st.lists(st.integers(0, 3), max_size=12),
    token_ids=st.frozensets(st.integers(0, 5), max_size=2),
    sequences=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=3).map(tuple),
)
def test_tokens_are_cut_where_the_first_stop_begins(
    tokens: list[int], token_ids: frozenset[int], sequences: tuple[tuple[int, ...], ...]
) -> None:
    def as_text(numbers: tuple[int, ...] | list[int]) -> str:
        return "".join(map(str, numbers))

    stops = tuple(as_text(sequence) for sequence in (*((token,) for token in token_ids), *sequences))
    kept = list(cut_tokens(tokens, Stops(token_ids, sequences, ())))
    assert as_text(kept) == before_first_stop(as_text(tokens), stops)


def test_what_may_become_a_stop_is_held_back_and_nothing_else() -> None:
    read: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("one", " E", "N", "Dive", " E", "ND", "never"):
            read.append(piece)
            yield piece

    given_out = [(piece, len(read)) for piece in cut_text(pieces(), (" END.", " END!", "ND"))]
    assert given_out == [("one", 1), (" E", 4)]


def test_the_source_is_not_read_beyond_a_stop() -> None:
    source = iter(["a", "STOP", "b"])
    assert list(cut_text(source, ("STOP",))) == ["a"]
    assert list(source) == ["b"]
    tokens = iter([1, 2, 3])
    assert list(cut_tokens(tokens, Stops(frozenset({2}), (), ()))) == [1]
    assert list(tokens) == [3]


def test_without_stops_everything_passes_at_once() -> None:
    assert list(cut_text(["a", "bc"], ())) == ["a", "bc"]
    assert list(cut_tokens([1, 2], Stops(frozenset(), (), ()))) == [1, 2]
    assert list(cut_text([], ("x",))) == []

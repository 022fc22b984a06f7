"""Tokens to text, piece by piece: the same as all at once, and no half characters on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.answers.answer_text import UNFINISHED, Decode, decode_tokens, without_head
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.prompt.render import Segment
from tests.prompt.formats import SPECIAL_TOKENS, contents
from tests.prompt.tokenizers import byte_tokenizer, hugging_face_tokenizer, segment_tokenizer

BYTES = byte_tokenizer(SPECIAL_TOKENS)
OURS = SegmentTokenizer(BYTES.to_str())
WORD = Segment("word")
TEXTS = contents("  ", "\n\n", "    indented", UNFINISHED)


def byte_decode(tokens: Sequence[int]) -> str:
    text: str = BYTES.decode(list(tokens), skip_special_tokens=True)
    return text


def check_text(text: str, ours: SegmentTokenizer, decode: Decode) -> None:
    """A text behind a word, as an answer stands behind its prompt."""
    context = ours.encode_prompt([WORD])
    tokens = ours.encode_prompt([WORD, Segment(text, is_template=False, starts_answer=True)])[len(context) :]
    pieces = list(decode_tokens(tokens, decode, context))
    assert "".join(pieces) == text
    assert all(pieces)


@given(text=TEXTS)
@settings(max_examples=50)
def test_one_token_a_byte(text: str) -> None:
    check_text(text, OURS, byte_decode)


@pytest.mark.parametrize(
    "folder",
    [
        "models/stories260K-hf",
        pytest.param("tokenizers/mistral-v3-hf", marks=pytest.mark.slow),
        pytest.param("tokenizers/gpt2-hf", marks=pytest.mark.slow),
    ],
)
def test_real_tokenizers(folder: str, material: Path) -> None:
    """Of which some drop the space at the begin of a text."""
    ours, decode = segment_tokenizer(material / folder), decoder(material / folder)

    @given(text=TEXTS.filter(lambda text: "\u2581" not in text))
    @settings(max_examples=40)
    def check(text: str) -> None:
        check_text(text, ours, decode)

    check()


def decoder(folder: Path) -> Callable[[Sequence[int]], str]:
    tokenizer = hugging_face_tokenizer(folder)
    return lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(tokens=st.lists(st.integers(0, 511)))
@settings(max_examples=50)
def test_bytes_that_are_no_text_end_nothing(tokens: list[int], material: Path) -> None:
    """An untrained model writes any tokens; what is shown early may differ from what the whole would be."""
    folder = material / "models" / "stories260K-hf"
    pieces = list(decode_tokens(tokens, decoder(folder), segment_tokenizer(folder).encode_prompt([WORD])))
    assert all(pieces)


def test_characters_come_whole_and_as_soon_as_they_are() -> None:
    tokens = OURS.encode_prompt([Segment("a é😀")])
    source = iter(tokens)
    found = [(piece, len(list(copy(source)))) for piece in decode_tokens(source, byte_decode, [])]
    assert found == [("a", 7), (" ", 6), ("é", 4), ("😀", 0)]


def test_a_character_that_never_ends() -> None:
    tokens = OURS.encode_prompt([Segment("a😀")])
    assert "".join(decode_tokens(tokens[:-1], byte_decode, [])) == "a" + UNFINISHED


def test_control_tokens_have_no_text() -> None:
    tokens = OURS.encode_prompt([Segment("a<s>b</s></s>")])
    assert list(decode_tokens(tokens, byte_decode, [])) == ["a", "b"]


@given(head=st.text("ab", max_size=4), pieces=st.lists(st.text("ab", min_size=1, max_size=3), max_size=5))
def test_the_head_of_an_answer_is_left_out(head: str, pieces: list[str]) -> None:
    found = list(without_head(pieces, head))
    assert "".join(found) == "".join(pieces).removeprefix(head)
    assert all(found)


def test_pieces_behind_the_head_come_one_by_one() -> None:
    source = iter([" ", "a", "b", "c"])
    answer = without_head(source, " ")
    assert next(answer) == "a"
    assert next(source) == "b"
    assert list(answer) == ["c"]

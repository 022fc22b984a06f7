"""Lines of JSONL to conversations: what is read, and the reason for every line that is not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from llmforge.dataset.rows import parse_row
from llmforge.errors import DataError
from llmforge.prompt.messages import parse_conversation
from tests.prompt.formats import LLAMA_3, SPECIAL_TOKENS, VERBATIM, Row, contents, rows

USER, ANSWER = {"role": "user", "content": "hé"}, {"role": "assistant", "content": "\U0001f600"}


@given(row=rows(contents(*SPECIAL_TOKENS)))
@settings(max_examples=25)
def test_every_way_to_write_json_is_the_same_row(row: Row) -> None:
    expected = parse_conversation(row, LLAMA_3)
    for text in (json.dumps({"messages": row}), json.dumps({"id": 1, "messages": row}, ensure_ascii=False, indent=1)):
        assert parse_row(text.encode(), LLAMA_3) == expected


def test_a_byte_order_mark_and_white_space_around_a_row() -> None:
    line = b"\xef\xbb\xbf \t" + json.dumps({"messages": [USER, ANSWER]}).encode() + b" \r"
    assert parse_row(line, LLAMA_3) == parse_conversation([USER, ANSWER], LLAMA_3)


def test_null_characters_in_an_escape_are_content() -> None:
    row = [{**USER, "content": "a\x00b"}, ANSWER]
    assert parse_row(json.dumps({"messages": row}).encode(), LLAMA_3).turns[0].content == "a\x00b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"messages": [{"role": "us', "not JSON: Input data was truncated"),
        (b'{"messages": []} {', "not JSON: JSON is malformed: trailing characters (byte 18)"),
        (b"hello", "not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"\xef\xbb\xbf", "not JSON: Input data was truncated"),
        (b'{"messages": "\x00"}', "not JSON: JSON is malformed: invalid character (byte 14)"),
        (b"[" * 100_000, "not JSON of a row: too many brackets inside each other"),
        (b'{"messages": "\xe9t\xe9"}', "not UTF-8: invalid continuation byte 0xe9; save the file as UTF-8"),
        (b'{"a": "ok", "messages": "ab\xff"}', "not UTF-8: invalid start byte 0xff; save the file as UTF-8"),
        (b"[]", "expected a JSON object with a `messages` list"),
        (b'"messages"', "expected a JSON object with a `messages` list"),
        (b"{}", "no `messages` column (found: no column)"),
        (b'{"text": 1, "id": 2}', "no `messages` column (found: id, text)"),
        (b'{"messages": null}', "`messages` is nothing (null); expected a list of {role, content} objects"),
        (
            b'{"messages": [{"role": "user", "content": "x"}]}',
            "the last message is the user's; a training row ends with the assistant's answer",
        ),
    ],
)
def test_refusals(line: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(line, VERBATIM)
    assert str(caught.value) == message

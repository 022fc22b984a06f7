"""The short way to read a row: the same conversation as by the long one, or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from llmforge.dataset.plain_rows import parse_plain
from llmforge.dataset.rows import parse_row
from llmforge.prompt.messages import parse_conversation
from tests.prompt.formats import ADJACENT, Row, contents, rows

ROW: Row = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@given(row=rows(contents()))
def test_the_same_conversation(row: Row) -> None:
    line = json.dumps({"id": 7, "messages": row, "tools": None}).encode()
    assert parse_plain(line) == parse_conversation(row, ADJACENT) == parse_row(line, ADJACENT)


OTHER_ROWS = {
    "a weight": {"messages": [ROW[0], {**ROW[1], "weight": 0.5}]},
    "an empty answer": {"messages": [ROW[0], {**ROW[1], "content": ""}]},
    "a blank answer": {"messages": [ROW[0], {**ROW[1], "content": " \n"}]},
    "a tool": {"messages": [*ROW, {"role": "tool", "content": "4"}, ROW[1]]},
    "tools": {"messages": ROW, "tools": [{}]},
    "parts": {"messages": [ROW[0], {**ROW[1], "content": [{"type": "text", "text": "ho"}]}]},
    "another role": {"messages": [{**ROW[0], "role": "developer"}, *ROW]},
    "no answer": {"messages": ROW[:1]},
    "no message": {"messages": []},
    "no list": {"messages": None},
    "no messages": {"text": "hi"},
    "a list": [ROW],
}


@pytest.mark.parametrize("row", OTHER_ROWS.values(), ids=OTHER_ROWS)
def test_other_rows_are_left_to_the_long_way(row: object) -> None:
    assert parse_plain(json.dumps(row).encode()) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf" + json.dumps({"messages": ROW}).encode(),
        json.dumps({"messages": ROW}).encode("utf-16"),
        b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "ho"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}, {"role": "assistant", "content": "ho"}]}',
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "byte order mark", "UTF-16", "half a surrogate pair", "no UTF-8", "deep"],
)
def test_bad_lines_are_left_to_the_long_way(line: bytes) -> None:
    assert parse_plain(line) is None

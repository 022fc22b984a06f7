"""Lines of JSONL to conversations: what is read, and the reason for every line that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from llmforge.config.data import DatasetConfig
from llmforge.dataset.rows import parse_row
from llmforge.errors import DataError
from llmforge.prompt.document import texts_of
from llmforge.prompt.messages import Conversation, parse_conversation
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
    assert texts_of(parse_row(json.dumps({"messages": row}).encode(), LLAMA_3)) == ["a\x00b", ANSWER["content"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"messages": [{"role": "us', "not JSON: Input data was truncated"),
        (b'{"messages": []} {', "not JSON: JSON is malformed: trailing characters (byte 18)"),
        (b"hello", "not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"\xef\xbb\xbf", "not JSON: Input data was truncated"),
        (
            b'{"messages": "\x00"}',
            "not JSON: JSON is malformed: invalid character (byte 14); it has NUL bytes, as a crash leaves them behind:"
            " write the file anew",
        ),
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


SHAREGPT = {
    "columns": {"messages": "conversations", "role": "from", "content": "value"},
    "roles": {"human": "user", "gpt": "assistant"},
}
COLUMNS = "dataset.columns: {messages: conversations, role: from, content: value}"
EXCHANGE = [{"from": "human", "value": "hé"}, {"from": "gpt", "value": "\U0001f600"}]


def _parse(row: dict[str, Any], **dataset: Any) -> Conversation:
    conversation = parse_row(json.dumps(row).encode(), VERBATIM, DatasetConfig.model_validate(dataset))
    assert isinstance(conversation, Conversation)
    return conversation


def _refusal(row: dict[str, Any], **dataset: Any) -> str:
    with pytest.raises(DataError) as caught:
        _parse(row, **dataset)
    return str(caught.value)


@given(row=rows(contents(*SPECIAL_TOKENS)))
@settings(max_examples=25)
def test_other_names_for_the_same_row(row: Row) -> None:
    expected = parse_conversation(row, LLAMA_3)
    names = {"user": "human_1", "assistant": "gpt", "system": "system"}
    renamed = [{"value": message["content"], "from": names[message["role"]], "id": 3} for message in row]
    dataset = DatasetConfig.model_validate({**SHAREGPT, "roles": {"human_1": "user", "gpt": "assistant"}})
    line = json.dumps({"conversations": renamed, "messages": []}).encode()
    assert parse_row(line, LLAMA_3, dataset) == expected


def test_real_conversations_under_other_names(material: Path) -> None:
    data = json.loads((material / "data" / "fastchat" / "dummy_conversation.json").read_text(encoding="utf-8"))
    for row in data[:50]:
        conversation = _parse(row, **SHAREGPT)
        contents_of_row = [message["value"] for message in row["conversations"]]
        assert [message.content for message in conversation.messages] == contents_of_row
        assert [message.role for message in conversation.messages][:2] == ["user", "assistant"]


def test_roles_alone_may_have_other_names() -> None:
    row = [{**USER, "role": "assistant"}, {**ANSWER, "role": "user"}, {"role": "system", "content": "s"}]
    expected = parse_conversation([USER, ANSWER, {"role": "system", "content": "s"}], VERBATIM)
    assert _parse({"messages": row}, roles={"assistant": "user", "user": "assistant"}) == expected


def test_weights_have_columns_of_their_own() -> None:
    row = [USER, {**ANSWER, "weight": 0.25, "loss": 0.5}, USER, {**ANSWER, "learn": False}]
    messages = _parse({"messages": row}, columns={"weight": "loss", "train": "learn"}).messages
    assert [message.weight for message in messages] == [1, 0.5, 1, 0]


def test_a_mapped_column_goes_before_one_of_our_name() -> None:
    both = [{"role": "assistant", "content": "ours", "from": "human", "value": "theirs"}, EXCHANGE[1]]
    conversation = _parse({"messages": [USER, ANSWER], "conversations": both}, **SHAREGPT)
    assert conversation.messages[0].role == "user"
    assert conversation.messages[0].content == "theirs"
    ours_only = [{"role": "user", "content": "ours"}, EXCHANGE[1]]
    assert _refusal({"conversations": ours_only}, **SHAREGPT) == "message 1 has no `from` (found: content, role)"
    no_weight = [USER, {**ANSWER, "weight": 0}]
    assert _parse({"messages": no_weight}, columns={"weight": "loss"}).messages[1].weight == 1


@pytest.mark.parametrize(
    ("row", "dataset", "message"),
    [
        (
            {"conversations": EXCHANGE, "id": 1},
            {},
            f"no `messages` column (found: conversations, id); map it in the job: {COLUMNS}",
        ),
        (
            {"dialogue": [USER, ANSWER]},
            {},
            "no `messages` column (found: dialogue); map it in the job: dataset.columns: {messages: dialogue}",
        ),
        ({"conversations": "text"}, {}, "no `messages` column (found: conversations)"),
        (
            {"messages": [USER, ANSWER]},
            {"columns": {"messages": "chat log", "content": "value"}},
            "no `chat log` column (found: messages)",
        ),
        (
            {"conversation": EXCHANGE},
            {"columns": {"messages": "turns", "content": "value"}},
            "no `turns` column (found: conversation); map it in the job: "
            "dataset.columns: {messages: conversation, content: value, role: from}",
        ),
        (
            {"messages": EXCHANGE},
            {},
            "message 1 has no `role` (found: from, value); map it in the job: "
            "dataset.columns: {role: from, content: value}",
        ),
        (
            {"messages": [USER, {"role": "assistant", "text": "x"}]},
            {},
            "message 2 has no `content` (found: role, text); map it in the job: dataset.columns: {content: text}",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, {}, "message 2 has no `content` (found: role)"),
        ({"messages": [{}]}, {}, "message 1 has no `role` (found: no column)"),
        (
            {"messages": [{**USER, "role": "human_1"}, {**ANSWER, "role": "gpt"}, {**USER, "role": "function"}]},
            {},
            "message 1 has role 'human_1', which is none of system, user, assistant, tool; map it in the job: "
            "dataset.roles: {human_1: user, gpt: assistant, function: tool}",
        ),
        (
            {"messages": [{**USER, "role": "Anna B."}, {**ANSWER, "role": "Ben"}]},
            {},
            "message 1 has role 'Anna B.', which is none of system, user, assistant, tool; map it in the job: "
            'dataset.roles: {"Anna B.": user, Ben: assistant}',
        ),
        (
            {"conversations": EXCHANGE},
            {**SHAREGPT, "roles": {"human": "user"}},
            "message 2 has role 'gpt' in `from`, which is none of system, user, assistant, tool; map it in the job: "
            "dataset.roles: {human: user, gpt: assistant}",
        ),
        (
            {"conversations": EXCHANGE[:1]},
            SHAREGPT,
            f"the last message is the user's; a training row ends with the assistant's answer (read by {COLUMNS})",
        ),
        (
            {"conversations": [EXCHANGE[0], {"from": "gpt", "value": None}]},
            SHAREGPT,
            f"message 2 (assistant) has nothing (null) as content; expected a string (read by {COLUMNS})",
        ),
        (
            {"conversations": 3},
            SHAREGPT,
            f"`messages` is a number; expected a list of {{role, content}} objects (read by {COLUMNS})",
        ),
    ],
)
def test_refusals_name_what_the_data_call_it_and_the_remedy(
    row: dict[str, Any], dataset: dict[str, Any], message: str
) -> None:
    assert _refusal(row, **dataset) == message


@pytest.mark.parametrize("dataset", [{}, SHAREGPT])
def test_what_is_no_message_is_not_renamed(dataset: dict[str, Any]) -> None:
    column = "conversations" if dataset else "messages"
    assert _refusal({column: ["hello"]}, **dataset).startswith("message 1 is a string")
    assert _refusal({column: [*([EXCHANGE[0]] if dataset else [USER]), 3]}, **dataset).startswith("message 2 is a numb")


def test_what_is_said_of_tool_calls_comes_through() -> None:
    call = {"from": "gpt", "value": None, "tool_calls": [{"id": "1"}]}
    assert "has tool_calls" in _refusal({"conversations": [EXCHANGE[0], call]}, **SHAREGPT)


@pytest.mark.parametrize("role", [None, 3, ["user"], {"a": 1}])
def test_a_role_is_text(role: object) -> None:
    assert f"has role {role!r}" in _refusal({"conversations": [{"from": role, "value": "x"}]}, **SHAREGPT)

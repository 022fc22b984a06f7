"""Rows to conversations: order, normalisation, and what is refused in which words."""

from __future__ import annotations

import pytest

from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import DataError
from llmforge.prompt.messages import Conversation, Message, parse_conversation
from tests.prompt.formats import CHATML, LLAMA_3, VERBATIM

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}


def refusal(messages: object, prompt_format: PromptFormat = LLAMA_3, *, for_training: bool = True) -> str:
    with pytest.raises(DataError) as caught:
        parse_conversation(messages, prompt_format, for_training=for_training)
    return str(caught.value)


@pytest.mark.parametrize("place", range(5))
def test_the_system_message_moves_to_the_front(place: int) -> None:
    row = [USER, ANSWER, USER, ANSWER]
    row.insert(place, SYSTEM)
    conversation = parse_conversation(row, LLAMA_3)
    assert conversation.system == Message("system", "be kind")
    assert conversation.turns == (Message("user", "hi"), Message("assistant", "hello")) * 2
    assert conversation.messages == (Message("system", "be kind"), *conversation.turns)


def test_without_a_system_message() -> None:
    conversation = parse_conversation([USER, ANSWER], LLAMA_3)
    assert conversation == Conversation((Message("user", "hi"), Message("assistant", "hello")))
    assert conversation.system is None
    assert conversation.turns == conversation.messages


def test_contents_are_kept_as_they_are() -> None:
    content = " \n{{ role }} <|eot_id|>\x00\u2028\U0001f600 "
    assert parse_conversation([{**USER, "content": content}, ANSWER], LLAMA_3).turns[0].content == content


def test_other_keys_of_a_message_are_the_users_own() -> None:
    row = [{**USER, "name": 1, "id": "x"}, {**ANSWER, "tool_calls": None}]
    assert parse_conversation(row, LLAMA_3) == parse_conversation([USER, ANSWER], LLAMA_3)


@pytest.mark.parametrize(
    ("marks", "weight"),
    [
        ({}, 1.0),
        ({"weight": 1}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 0.0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"weight": 3}, 3.0),
        ({"train": True}, 1.0),
        ({"train": False}, 0.0),
        ({"train": True, "weight": 0}, 0.0),
        ({"train": False, "weight": 2}, 0.0),
    ],
)
def test_a_turn_may_count_more_or_less_in_the_loss(marks: dict[str, object], weight: float) -> None:
    assert parse_conversation([USER, {**ANSWER, **marks}], LLAMA_3).turns[1].weight == weight


def test_a_prompt_ends_with_the_user() -> None:
    conversation = parse_conversation([SYSTEM, USER, ANSWER, USER], LLAMA_3, for_training=False)
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert refusal([USER, ANSWER], for_training=False) == (
        "the last message is the assistant's; a prompt ends with the user's message"
    )


ORDER = "after the system message, user and assistant take turns and the user begins"
WEIGHT = "expected a number from 0, which leaves it out"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "`messages` is nothing (null); expected a list of {role, content} objects"),
        ("hi", "`messages` is a string; expected a list of {role, content} objects"),
        (USER, "`messages` is an object; expected a list of {role, content} objects"),
        (3, "`messages` is a number; expected a list of {role, content} objects"),
        ([], "`messages` is an empty list; expected at least a user and an assistant message"),
        (["hi"], "message 1 is a string; expected an object with `role` and `content`"),
        ([USER, [ANSWER]], "message 2 is a list; expected an object with `role` and `content`"),
        ([{"content": "x"}], "message 1 has role None; allowed are system, user, assistant"),
        ([USER, {**ANSWER, "role": "bot"}], "message 2 has role 'bot'; allowed are system, user, assistant"),
        ([{**USER, "role": ["user"]}], "message 1 has role ['user']; allowed are system, user, assistant"),
        ([{"role": "user"}], "message 1 (user) has nothing (null) as content; expected a string"),
        ([{**USER, "content": [{"text": "x"}]}], "message 1 (user) has a list as content; expected a string"),
        ([{**USER, "content": True}], "message 1 (user) has a boolean as content; expected a string"),
        ([{**USER, "content": 1.5}], "message 1 (user) has a number as content; expected a string"),
        ([USER, {**ANSWER, "weight": -1}], f"message 2 has weight -1; {WEIGHT}"),
        ([USER, {**ANSWER, "weight": None}], f"message 2 has weight None; {WEIGHT}"),
        ([USER, {**ANSWER, "weight": True}], f"message 2 has weight True; {WEIGHT}"),
        ([USER, {**ANSWER, "weight": float("nan")}], f"message 2 has weight nan; {WEIGHT}"),
        ([USER, {**ANSWER, "weight": float("inf")}], f"message 2 has weight inf; {WEIGHT}"),
        ([USER, {**ANSWER, "train": 1}], "message 2 has train 1; expected true or false"),
        (
            [USER, {**ANSWER, "content": " \n"}],
            "message 2 (assistant) has empty content; write a text or remove the row",
        ),
        ([{**USER, "content": ""}, ANSWER], "message 1 (user) has empty content; write a text or remove the row"),
        ([SYSTEM, USER, SYSTEM, ANSWER], "the row has 2 system messages; at most one is allowed"),
        ([SYSTEM], "the row has no user message"),
        ([USER], "the last message is the user's; a training row ends with the assistant's answer"),
        ([ANSWER], f"message 1 has role assistant, expected user: {ORDER}"),
        ([SYSTEM, USER, USER], f"message 3 has role user, expected assistant: {ORDER}"),
        ([USER, ANSWER, SYSTEM, ANSWER], f"message 4 has role assistant, expected user: {ORDER}"),
        (
            [USER, {**ANSWER, "content": "ab\udc80"}],
            "message 2 (assistant) holds '\\udc80' at character 3, which is half of a surrogate pair; "
            "write valid Unicode",
        ),
    ],
)
def test_refusals(messages: object, message: str) -> None:
    assert refusal(messages) == message


def test_what_counts_as_empty_depends_on_the_format() -> None:
    blank = [{**USER, "content": " "}, {**ANSWER, "content": ""}]
    assert [message.content for message in parse_conversation(blank, VERBATIM).turns] == [" ", ""]
    assert refusal(blank, CHATML) == "message 2 (assistant) has empty content; write a text or remove the row"
    assert refusal(blank, LLAMA_3) == "message 1 (user) has empty content; write a text or remove the row"


def test_an_empty_system_message_is_allowed() -> None:
    assert parse_conversation([{**SYSTEM, "content": ""}, USER, ANSWER], LLAMA_3).system == Message("system", "")


TOOLS = LLAMA_3.model_copy(update={"tool": "<tool>{instruction}</tool>"})
TOOL = {"role": "tool", "content": "42"}


@pytest.mark.parametrize(
    "row",
    [
        [USER, ANSWER, TOOL, ANSWER],
        [SYSTEM, USER, ANSWER, TOOL, TOOL, ANSWER, USER, ANSWER],
    ],
)
def test_tools_answer_the_assistant_where_the_format_knows_them(row: list[dict[str, object]]) -> None:
    conversation = parse_conversation(row, TOOLS)
    assert [message.role for message in conversation.messages] == [message["role"] for message in row]
    prompt = parse_conversation(row[:-1], TOOLS, for_training=False)
    assert prompt.messages == conversation.messages[:-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([TOOL, ANSWER], f"message 1 has role tool, expected user: {ORDER}"),
        ([USER, TOOL, ANSWER], f"message 2 has role tool, expected assistant: {ORDER}"),
        ([USER, ANSWER, TOOL, USER, ANSWER], f"message 4 has role user, expected assistant: {ORDER}"),
        ([USER, ANSWER, TOOL], "the last message is a tool's; a training row ends with the assistant's answer"),
        (
            [USER, ANSWER, {**TOOL, "content": " "}],
            "message 3 (tool) has empty content; write a text or remove the row",
        ),
        (
            [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}, TOOL, ANSWER],
            "message 2 (assistant) has tool_calls, for which a prompt format has no place; "
            "write the call as text into `content`, as the model shall write it",
        ),
    ],
)
def test_refusals_around_tools(row: list[dict[str, object]], message: str) -> None:
    assert refusal(row, TOOLS) == message


def test_tools_need_a_template() -> None:
    assert refusal([USER, ANSWER, TOOL, ANSWER]) == (
        "message 3 has role 'tool', but the prompt format has no template for it; add `tool` to "
        "generation_config.prompt_format, or remove the row"
    )

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
    ("marks", "trained"),
    [
        ({}, True),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"train": True}, True),
        ({"train": False}, False),
        ({"train": True, "weight": 0}, False),
    ],
)
def test_a_turn_may_be_taken_out_of_the_loss(marks: dict[str, object], trained: bool) -> None:
    assert parse_conversation([USER, {**ANSWER, **marks}], LLAMA_3).turns[1].trained is trained


def test_a_prompt_ends_with_the_user() -> None:
    conversation = parse_conversation([SYSTEM, USER, ANSWER, USER], LLAMA_3, for_training=False)
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert refusal([USER, ANSWER], for_training=False) == (
        "the last message is the assistant's; a prompt ends with the user's message"
    )


ORDER = "after the system message, user and assistant take turns and the user begins"


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
        ([USER, {**ANSWER, "weight": 0.5}], "message 2 has weight 0.5; only 0 and 1 are supported"),
        ([USER, {**ANSWER, "weight": None}], "message 2 has weight None; only 0 and 1 are supported"),
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

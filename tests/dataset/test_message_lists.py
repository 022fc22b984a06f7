"""Lists of messages in other names: which columns are read, and what is said of those that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from llmforge.config.data import ColumnNames, DatasetConfig
from llmforge.dataset.message_lists import MessageColumns, Naming, known_roles, naming_fault, renamed

EXACT = Naming(None, {}, others=False)
KNOWN = Naming(None, {}, others=True)
MAPPED = Naming(ColumnNames(role="who"), {"me": "user"}, others=True)


def test_only_the_format_messages_goes_by_exact_names() -> None:
    assert Naming.of(DatasetConfig(format="auto")) == EXACT
    assert Naming.of(DatasetConfig(format="messages")) == EXACT
    assert Naming.of(DatasetConfig(format="sharegpt")) == KNOWN


@pytest.mark.parametrize(
    ("naming", "message", "role", "content"),
    [
        (EXACT, {"from": "human", "value": "hi"}, "role", "content"),
        (KNOWN, {"from": "human", "value": "hi"}, "from", "value"),
        (KNOWN, {"role": "user", "content": "hi"}, "role", "content"),
        (KNOWN, {"role": "user", "from": "human", "text": "hi"}, "from", "text"),
        (KNOWN, {"id": 1}, "role", "content"),
        (MAPPED, {"who": "me", "from": "human", "content": "hi", "value": "x"}, "who", "content"),
    ],
)
def test_columns_of_a_list(naming: Naming, message: dict[str, Any], role: str, content: str) -> None:
    assert naming.columns_of(["no message", message]) == MessageColumns(role, content, "weight", "train")


@pytest.mark.parametrize(
    ("naming", "role", "expected"),
    [
        (EXACT, "developer", "system"),
        (EXACT, "human", "human"),
        (KNOWN, "Human", "user"),
        (KNOWN, "GPT", "assistant"),
        (KNOWN, "observation", "tool"),
        (KNOWN, "function_call", "function_call"),
        (MAPPED, "me", "user"),
        (MAPPED, "Me", "Me"),
    ],
)
def test_roles(naming: Naming, role: str, expected: str) -> None:
    assert naming.role(role) == expected


def test_weights_and_what_else_a_message_has() -> None:
    messages = [
        {"role": "user", "content": "hi", "loss_weight": 0.0, "name": "Ann"},
        {"role": "assistant", "content": None, "loss_weight": 0.5, "weight": 2, "train": None, "tool_calls": [1]},
        "no message",
    ]
    assert renamed(messages, EXACT) == [
        {"role": "user", "content": "hi", "weight": 0.0, "name": "Ann"},
        {"role": "assistant", "content": None, "weight": 2, "tool_calls": [1]},
        "no message",
    ]
    assert renamed({"role": "user"}, EXACT) == {"role": "user"}


def test_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    assert renamed([{"role": "user", "content": parts}], EXACT) == [{"role": "user", "content": "ab"}]
    assert renamed([{"role": "user", "content": []}], EXACT) == [{"role": "user", "content": ""}]


def test_roles_that_are_read_by_what_they_are_known_for() -> None:
    messages = [{"from": "human", "value": "a"}, {"from": "user", "value": "b"}, {"from": 3}, {"from": "who?"}, "x"]
    assert known_roles(messages, KNOWN) == {"human": "user"}
    assert known_roles(messages, Naming(None, {"human": "assistant"}, others=True)) == {}
    assert known_roles("no list", KNOWN) == {}


def test_faults_of_names() -> None:
    assert naming_fault([{"from": "human", "value": "a"}], KNOWN) is None
    assert naming_fault("no list", KNOWN) is None
    assert naming_fault([{"from": "agent_1", "value": "a"}, {"from": "customer", "value": "b"}], KNOWN) == (
        "message 1 has role 'agent_1' in `from`, which is none of system, user, assistant, tool; map it in the job: "
        "dataset.roles: {agent_1: assistant, customer: user}"
    )

"""What a line of a chat asks for."""

from __future__ import annotations

import pytest

from llmforge.cli.chat_session import HELP, ChatSession, Turn


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_answers_become_history() -> None:
    session = ChatSession()
    assert session.read(" one\n two ") == Turn(messages=[user("one\n two")])
    session.answered("first")
    assert session.read("three") == Turn(messages=[user("one\n two"), assistant("first"), user("three")])
    session.answered("second")
    assert session.read("x").messages == [
        user("one\n two"), assistant("first"), user("three"), assistant("second"), user("x"),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["", " \n"])
def test_a_question_without_an_answer_is_forgotten(answer: str) -> None:
    session = ChatSession()
    session.read("one")
    session.answered(answer)
    assert session.read("two") == Turn(messages=[user("two")])


def test_the_system_message() -> None:
    session = ChatSession("Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert session.read("one").messages == [system, user("one")]
    session.answered("first")
    assert session.read("/system Be long.\nVery. ") == Turn(notice="System message set.")
    system = {"role": "system", "content": "Be long.\nVery."}
    assert session.read("two").messages == [system, user("one"), assistant("first"), user("two")]
    assert session.read("/system") == Turn(notice="There is no system message now.")
    assert session.read("two").messages == [user("one"), assistant("first"), user("two")]


def test_reset_keeps_the_system_message() -> None:
    session = ChatSession("Be brief.")
    session.read("one")
    session.answered("first")
    assert session.read("/reset") == Turn(notice="The conversation begins anew.")
    assert session.read("two").messages == [{"role": "system", "content": "Be brief."}, user("two")]


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("", Turn()),
        (" \t\n", Turn()),
        ("/help", Turn(notice=HELP)),
        ("/exit", Turn(leaves=True)),
        ("/1", Turn(notice="/1: no such command; /help lists them, // begins a message with /")),
        ("//etc/hosts", Turn(messages=[user("/etc/hosts")])),
        ("a /reset", Turn(messages=[user("a /reset")])),
    ],
)  # fmt: skip
def test_commands(text: str, turn: Turn) -> None:
    assert ChatSession().read(text) == turn


def test_a_near_miss_is_named() -> None:
    notice = ChatSession().read("/rest").notice
    assert notice == "/rest: no such command; did you mean /reset? /help lists them, // begins a message with /"

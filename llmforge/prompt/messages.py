"""Messages and conversations: validated, in order, and nothing about templates' text or tokens.

In: the `messages` list of one row, as parsed from JSON. Out: a `Conversation` whose roles are in a legal order, or a
`DataError` that names the message. It does not know where the row came from: the caller adds file and line.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, cast

from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
BARE_TEMPLATE = "{instruction}"


class Message(NamedTuple):
    """One turn: who speaks, what is said, and how much its tokens count in the loss."""

    role: Role
    content: str
    weight: float = 1.0
    """Factor of the loss of this turn's tokens; 0 (in the data also `"train": false`) takes it out of the loss."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, then strictly user, assistant, user, ...

    Where the format knows tools, one or more tool messages may stand in the place of a user message, but not first.
    """

    messages: tuple[Message, ...]

    @property
    def system(self) -> Message | None:
        """The system message, where there is one."""
        first = self.messages[0]
        return first if first.role == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[1:] if self.system else self.messages


def parse_conversation(raw_messages: object, prompt_format: PromptFormat, *, for_training: bool = True) -> Conversation:
    """Check and normalise the `messages` of one row.

    The system message may stand anywhere and moves to the front. For training the last message is the assistant's, for
    inference the user's. Raises `DataError` naming the message by its 1-based place in the row.
    """
    if not isinstance(raw_messages, Sequence) or isinstance(raw_messages, str):
        raise DataError(f"`messages` is {_describe(raw_messages)}; expected a list of {{role, content}} objects")
    if not raw_messages:
        raise DataError("`messages` is an empty list; expected at least a user and an assistant message")
    messages = [_parse_message(raw, number, prompt_format) for number, raw in enumerate(raw_messages, start=1)]
    return Conversation(in_order(messages, for_training=for_training))


def _parse_message(raw: object, number: int, prompt_format: PromptFormat) -> Message:
    if not isinstance(raw, dict):
        raise DataError(f"message {number} is {_describe(raw)}; expected an object with `role` and `content`")
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES and (role != "tool" or prompt_format.tool is None):
        raise DataError(f"message {number} {_unknown_role(role)}")
    if raw.get("tool_calls"):
        raise DataError(
            f"message {number} ({role}) has tool_calls, for which a prompt format has no place; "
            "write the call as text into `content`, as the model shall write it"
        )
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}) has {_describe(content)} as content; expected a string")
    check_characters(content, f"message {number} ({role})")
    if (not content or content.isspace()) and _is_empty(cast(Role, role), content, prompt_format):
        raise DataError(f"message {number} ({role}) has empty content; write a text or remove the row")
    return Message(cast(Role, role), content, loss_weight(raw, f"message {number}") if len(raw) > 2 else 1.0)


def _unknown_role(role: object) -> str:
    if role == "tool":
        return (
            "has role 'tool', but the prompt format has no template for it; add `tool` to "
            "generation_config.prompt_format, or remove the row"
        )
    return f"has role {role!r}; allowed are {', '.join(ROLES)}"


def check_characters(text: str, place: str) -> None:
    """Raise `DataError` for half of a surrogate pair, which is no character.

    JSON escapes and undecodable bytes on a command line can leave one.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"{text[error.start]!r} at character {error.start + 1}"
        raise DataError(f"{place} holds {found}, which is half of a surrogate pair; write valid Unicode") from error


def loss_weight(raw: Mapping[str, object], place: str) -> float:
    """The factor that `weight` and `train` of a message or a piece of text give to its loss. Raises `DataError`."""
    weight, train = raw.get("weight", 1), raw.get("train", True)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"{place} has weight {weight!r}; expected a number from 0, which leaves it out")
    if not isinstance(train, bool):
        raise DataError(f"{place} has train {train!r}; expected true or false")
    return float(weight) if train else 0.0


def _is_empty(role: Role, content: str, prompt_format: PromptFormat) -> bool:
    """Whether a blank content lacks what its template needs; a system message may always be empty."""
    if content and not prompt_format.strip_whitespace:
        return False
    return role != "system" and getattr(prompt_format, role) != BARE_TEMPLATE


def in_order(messages: list[Message], *, for_training: bool) -> tuple[Message, ...]:
    """The messages with the system message in front. Raises `DataError` where the roles are in no legal order."""
    problem, system = _order(tuple([message.role for message in messages]), for_training)
    if problem is not None:
        raise DataError(problem)
    if system > 0:
        return (messages[system], *messages[:system], *messages[system + 1 :])
    return tuple(messages)


@lru_cache(maxsize=4096)
def _order(roles: tuple[Role, ...], for_training: bool) -> tuple[str | None, int]:
    """(what is wrong with the order of the roles, where the system message stands or -1)."""
    systems = [index for index, role in enumerate(roles) if role == "system"]
    if len(systems) > 1:
        return f"the row has {len(systems)} system messages; at most one is allowed", -1
    if len(roles) == len(systems):
        return "the row has no user message", -1
    previous = "system"
    for number, role in enumerate(roles, start=1):
        if role == "system":
            continue
        if role not in _MAY_FOLLOW[previous]:
            return (
                f"message {number} has role {role}, expected {_MAY_FOLLOW[previous][0]}: "
                "after the system message, user and assistant take turns and the user begins"
            ), -1
        previous = role
    if for_training and previous != "assistant":
        speaker = "the user's" if previous == "user" else "a tool's"
        return f"the last message is {speaker}; a training row ends with the assistant's answer", -1
    if not for_training and previous == "assistant":
        return "the last message is the assistant's; a prompt ends with the user's message", -1
    return None, systems[0] if systems else -1


_MAY_FOLLOW = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def _describe(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing (null)"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

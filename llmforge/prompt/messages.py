"""Messages and conversations: validated, in order, and nothing about templates' text or tokens.

In: the `messages` list of one row, as parsed from JSON. Out: a `Conversation` whose roles are in a legal order, or a
`DataError` that names the message. It does not know where the row came from: the caller adds file and line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
BARE_TEMPLATE = "{instruction}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, what is said, and whether its tokens may carry loss."""

    role: Role
    content: str
    trained: bool = True
    """False takes the turn out of the loss (`"weight": 0` or `"train": false` in the data)."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, then strictly user, assistant, user, ..."""

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
    messages = [_parse_message(raw, number) for number, raw in enumerate(raw_messages, start=1)]
    for number, message in enumerate(messages, start=1):
        _check_content(message, number, prompt_format)
    return Conversation(_in_order(messages, for_training=for_training))


def _parse_message(raw: object, number: int) -> Message:
    if not isinstance(raw, dict):
        raise DataError(f"message {number} is {_describe(raw)}; expected an object with `role` and `content`")
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES:
        raise DataError(f"message {number} has role {role!r}; allowed are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}) has {_describe(content)} as content; expected a string")
    _check_characters(content, f"message {number} ({role})")
    return Message(cast(Role, role), content, trained=_is_trained(raw, number))


def _check_characters(content: str, place: str) -> None:
    """JSON escapes and undecodable bytes on a command line can leave half a surrogate pair, which is no character."""
    try:
        content.encode()
    except UnicodeEncodeError as error:
        found = f"{content[error.start]!r} at character {error.start + 1}"
        raise DataError(f"{place} holds {found}, which is half of a surrogate pair; write valid Unicode") from error


def _is_trained(raw: dict[str, object], number: int) -> bool:
    weight, train = raw.get("weight", 1), raw.get("train", True)
    if weight not in (0, 1):
        raise DataError(f"message {number} has weight {weight!r}; only 0 and 1 are supported")
    if not isinstance(train, bool):
        raise DataError(f"message {number} has train {train!r}; expected true or false")
    return bool(weight) and train


def _check_content(message: Message, number: int, prompt_format: PromptFormat) -> None:
    content = message.content.strip() if prompt_format.strip_whitespace else message.content
    if content or message.role == "system" or getattr(prompt_format, message.role) == BARE_TEMPLATE:
        return
    raise DataError(f"message {number} ({message.role}) has empty content; write a text or remove the row")


def _in_order(messages: list[Message], *, for_training: bool) -> tuple[Message, ...]:
    system = [message for message in messages if message.role == "system"]
    if len(system) > 1:
        raise DataError(f"the row has {len(system)} system messages; at most one is allowed")
    expected: Role = "user"
    for number, message in enumerate(messages, start=1):
        if message.role == "system":
            continue
        if message.role != expected:
            raise DataError(
                f"message {number} has role {message.role}, expected {expected}: "
                "after the system message, user and assistant take turns and the user begins"
            )
        expected = "assistant" if expected == "user" else "user"
    last, wanted = ("user", "assistant") if expected == "assistant" else ("assistant", "user")
    if len(messages) == len(system):
        raise DataError("the row has no user message")
    if for_training and last == "user":
        raise DataError("the last message is the user's; a training row ends with the assistant's answer")
    if not for_training and wanted == "user":
        raise DataError("the last message is the assistant's; a prompt ends with the user's message")
    return (*system, *(message for message in messages if message.role != "system"))


def _describe(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing (null)"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

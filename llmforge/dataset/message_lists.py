"""Lists of messages in whatever names the data use, to the raw messages that `parse_conversation` reads.

In: the value of a column, how the job names columns and roles, and whether roles and columns are also known by the
names that others give them. Out: objects `{role, content, weight, train}`. What is no message stays as it is, to be
refused by `parse_conversation`; `naming_fault` says what a refused list would have to be mapped to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmforge.config.data import ColumnNames, DatasetConfig, RoleName
from llmforge.dataset.known_names import (
    CONTENT_COLUMNS,
    KNOWN_ROLES,
    LIKELY_ROLES,
    OWN_NAMES,
    ROLE_COLUMNS,
    ROLE_NAMES,
    flow,
    listed,
    mapped_columns,
)
from llmforge.errors import DataError

LOSS_WEIGHT = "loss_weight"
"""Column of a message that LLaMA-Factory calls its weight."""
_NAMES = ("role", "content", "weight", "train")
_KNOWN = {"role": ROLE_COLUMNS, "content": CONTENT_COLUMNS}


class MessageColumns(NamedTuple):
    """Columns of the messages of one list."""

    role: str
    content: str
    weight: str
    train: str


@dataclass(frozen=True)
class Naming:
    """How the messages of a job are named."""

    columns: ColumnNames | None
    roles: Mapping[str, RoleName]
    others: bool
    """Names that others give to columns and roles are understood, not only llmforge's and the job's."""

    @classmethod
    def of(cls, dataset: DatasetConfig) -> "Naming":
        """As the format of the rows has it: only `messages` goes by exact names."""
        return cls(dataset.columns, dataset.roles or {}, dataset.format not in ("auto", "messages"))

    def role(self, role: str) -> str:
        """llmforge's name of a role, or the role itself where it has none."""
        mapped = self.roles.get(role)
        if mapped is not None:
            return mapped
        if self.others:
            return KNOWN_ROLES.get(role.lower(), role)
        return "system" if role == "developer" else role

    def columns_of(self, messages: Iterable[object]) -> MessageColumns:
        """The columns of a list, by its first message.

        A job's own name is exact. For a name that the job leaves at its default, all known ones are looked for; with
        other columns named, llmforge's is the first of them.
        """
        own = self.columns or OWN_NAMES
        found = MessageColumns(own.role, own.content, own.weight, own.train)
        first = next((raw for raw in messages if isinstance(raw, dict)), None)
        if not self.others or first is None:
            return found
        return found._replace(role=self._found(first, "role"), content=self._found(first, "content"))

    def _found(self, message: dict[str, Any], name: str) -> str:
        given: str = getattr(self.columns or OWN_NAMES, name)
        if given != name:
            return given
        candidates = (*_KNOWN[name], name) if self.columns is None else (name, *_KNOWN[name])
        return next((column for column in candidates if column in message), name)


def renamed(messages: object, naming: Naming) -> object:
    """The messages in llmforge's names. Raises `DataError` for a content of parts that are not all text."""
    if not isinstance(messages, list):
        return messages
    columns = naming.columns_of(messages)
    sources = (*zip(_NAMES, columns, strict=True),)
    if columns.weight == "weight":
        sources = (("weight", LOSS_WEIGHT), *sources)
    taken = frozenset((*_NAMES, *(column for _, column in sources)))
    return [
        _renamed_message(raw, number, sources, taken, naming) if isinstance(raw, dict) else raw
        for number, raw in enumerate(messages, start=1)
    ]


def _renamed_message(
    raw: dict[str, Any], number: int, sources: Sequence[tuple[str, str]], taken: frozenset[str], naming: Naming
) -> dict[str, Any]:
    message = {name: raw[column] for name, column in sources if column in raw}
    role, content = message.get("role"), message.get("content")
    if isinstance(role, str):
        message["role"] = naming.role(role)
    if isinstance(content, list):
        message["content"] = _joined(content, number)
    if len(message) > 2:
        message = {name: value for name, value in message.items() if value is not None or name in ("role", "content")}
    if len(message) < len(raw):
        message |= {key: value for key, value in raw.items() if key not in taken}
    return message


def _joined(parts: list[Any], number: int) -> str:
    """OpenAI writes a content as parts `{type: text, text}`; LLaMA-Factory calls the text `value`."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("value")) if kind == "text" else None
        if not isinstance(text, str):
            found = f"of type {kind!r}" if kind != "text" else "without a text"
            raise DataError(
                f"message {number} has a content with a part {found}; "
                'allowed are parts {"type": "text", "text": ...}, because models of text are trained: remove the row'
            )
        texts.append(text)
    return "".join(texts)


def naming_fault(messages: object, naming: Naming) -> str | None:
    """The first message of a refused list whose columns or role are not named as expected, and how to map them."""
    if not isinstance(messages, list):
        return None
    columns = naming.columns_of(messages)
    for number, raw in enumerate(messages, start=1):
        if not isinstance(raw, dict):
            return None
        for column in (columns.role, columns.content):
            if column not in raw and not raw.get("tool_calls"):
                found = f"message {number} has no `{column}` (found: {listed(raw)})"
                return found + column_advice(naming.columns, likely_columns(raw, columns))
        role = raw.get(columns.role)
        if isinstance(role, str) and naming.role(role) not in ROLE_NAMES:
            column = "" if columns.role == "role" else f" in `{columns.role}`"
            found = f"message {number} has role {role!r}{column}, which is none of {', '.join(ROLE_NAMES)}"
            return f"{found}; map it in the job: dataset.roles: {flow(_likely_roles(messages, columns.role, naming))}"
    return None


def likely_columns(raw: dict[str, Any], columns: MessageColumns) -> dict[str, str]:
    """What the columns of a message seem to be, for those that are not there under their name."""
    likely = {
        name: next((guess for guess in guesses if isinstance(raw.get(guess), str)), None)
        for name, guesses in _KNOWN.items()
        if getattr(columns, name) not in raw
    }
    return {name: guess for name, guess in likely.items() if guess is not None}


def _likely_roles(messages: Iterable[object], column: str, naming: Naming) -> dict[str, RoleName]:
    """The job's roles, and what the unknown ones of a row seem to be."""
    likely = dict(naming.roles)
    for raw in messages:
        role = raw.get(column) if isinstance(raw, dict) else None
        if isinstance(role, str) and role not in likely and naming.role(role) not in ROLE_NAMES:
            other: RoleName = "assistant" if "user" in likely.values() else "user"
            likely[role] = LIKELY_ROLES.get(role.lower().rstrip("_- 0123456789"), other)
    return likely


def known_roles(messages: object, naming: Naming) -> dict[str, str]:
    """The roles of a list that llmforge calls otherwise, without those that the job maps."""
    if not isinstance(messages, list):
        return {}
    column = naming.columns_of(messages).role
    roles = [raw.get(column) for raw in messages if isinstance(raw, dict)]
    texts = [role for role in roles if isinstance(role, str) and role not in naming.roles]
    return {role: naming.role(role) for role in texts if naming.role(role) != role}


def column_advice(columns: ColumnNames | None, likely: dict[str, str]) -> str:
    """How to map the columns that are likely meant; nothing where none is."""
    return f"; map it in the job: dataset.columns: {flow(mapped_columns(columns) | likely)}" if likely else ""

"""What data call their columns and roles: the names that are known, and which of them a row has.

In: a row and the names that the job gives. Out: names of columns. A name that the job gives goes before all known ones
and is the only one looked for.
"""

import json
from collections.abc import Mapping
from typing import get_args

from llmforge.config.data import ColumnNames, RoleName, RowFormat

Row = Mapping[str, object]
"""One record, decoded."""

OWN_NAMES = ColumnNames()
ROLE_NAMES: tuple[RoleName, ...] = get_args(RoleName)

COLUMNS = {
    "instruction": ("instruction", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "prompt": ("prompt",),
    "completion": ("completion", "response"),
    "chosen": ("chosen", "chosen_messages"),
    "rejected": ("rejected", "rejected_messages"),
    "label": ("label", "kto_tag"),
    "text": ("text",),
    "segments": ("segments",),
}
"""Columns of a row, by llmforge's names; the first that a row has is read."""
LISTS = ("conversations", "conversation", "dialogue", "dialog", "chat", "turns")
"""Columns that often hold a list of messages."""
ROLE_COLUMNS = ("from", "speaker", "author", "sender")
CONTENT_COLUMNS = ("value", "text", "message", "utterance")

KNOWN_ROLES: dict[str, RoleName] = {
    **dict.fromkeys(("system", "developer", "system_prompt"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation", "ipython"), "tool"),
}
"""Roles in lower case, with the only meaning they have in any data."""
LIKELY_ROLES: dict[str, RoleName] = {
    **KNOWN_ROLES,
    **dict.fromkeys(("customer", "client"), "user"),
    **dict.fromkeys(("agent", "function_call", "tool_call"), "assistant"),
}
"""Roles that are suggested as well; nobody speaks by these names unless the job maps them."""


def column_of(row: Row, name: str, columns: ColumnNames | None) -> str | None:
    """The column of a row that has a value for one of `COLUMNS`; one that is null has none."""
    given = getattr(columns, name) if columns is not None else None
    candidates = COLUMNS[name] if given is None else (given,)
    return next((column for column in candidates if row.get(column) is not None), None)


def names_of(name: str, columns: ColumnNames | None) -> str:
    """The columns that are looked for, for people: `` `output` (or `response`, `answer`) ``."""
    given = getattr(columns, name) if columns is not None else None
    first, *others = [f"`{column}`" for column in (COLUMNS[name] if given is None else (given,))]
    return f"{first} (or {', '.join(others)})" if others else first


def needs(row_format: RowFormat, columns: ColumnNames | None) -> str:
    """What the rows of a format hold, for people."""
    names = {name: names_of(name, columns) for name in COLUMNS}
    own = columns or OWN_NAMES
    return {
        "auto": "rows of a known format",
        "messages": f"a list `{own.messages}` of {{{own.role}, {own.content}}}",
        "sharegpt": "a list of {from, value}, such as `conversations`, or the list that dataset.columns names",
        "instruction": f"texts in {names['instruction']} and {names['output']}",
        "prompt_completion": f"{names['prompt']} and {names['completion']}, each a text or a list of messages",
        "preference": f"{names['chosen']} and {names['rejected']}, behind a {names['prompt']} unless they hold it",
        "unpaired_preference": (
            f"{names['label']}: true or false, beside {names['prompt']} and {names['completion']}, "
            f"{names['instruction']} and {names['output']}, or a list of messages"
        ),
        "text": f"a text in {names['text']}",
        "segments": f"a list {names['segments']} of {{text, train}}",
    }[row_format]


def mapped_columns(columns: ColumnNames | None) -> dict[str, str]:
    """The columns that the job names otherwise than llmforge does."""
    given = {} if columns is None else columns.model_dump()
    return {name: column for name, column in given.items() if column not in (None, name)}


def listed(row: Row) -> str:
    """The columns of a row, for people."""
    return ", ".join(sorted(row)) or "no column"


def flow(mapping: Mapping[str, str]) -> str:
    """A mapping as YAML."""
    words = [[word if word.isidentifier() else json.dumps(word) for word in pair] for pair in mapping.items()]
    return f"{{{', '.join(f'{key}: {value}' for key, value in words)}}}"


def describe(value: object) -> str:
    """What kind of value was found, for people."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing (null)"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

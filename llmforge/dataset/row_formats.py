"""Rows of columns and of lists to raw messages: one function for each format of conversations but `messages`.

In: a decoded row and how the job names columns and roles. Out: what `parse_conversation` checks, in llmforge's names,
or a `DataError` whose text is the reason alone, in the data's own names. docs/data.md describes the formats.
"""

from collections.abc import Iterator
from typing import Any, cast

from llmforge.config.data import ColumnNames, RowFormat
from llmforge.dataset.known_names import (
    COLUMNS,
    LISTS,
    OWN_NAMES,
    Row,
    column_of,
    describe,
    listed,
    mapped_columns,
    names_of,
    needs,
)
from llmforge.dataset.message_lists import Naming, renamed
from llmforge.errors import DataError

RawMessages = list[Any]
"""Objects with role and content as far as the data are right."""

BEFORE_INSTRUCTION = "context"
"""The column that is read before the instruction, as Dolly has it; others follow it, as Alpaca has it."""
_OTHER_COLUMNS = frozenset(column for columns in COLUMNS.values() for column in columns)


def list_columns(row: Row, naming: Naming) -> Iterator[str]:
    """The columns that hold a list of messages in names that are known or mapped, the likeliest first."""
    given = (naming.columns or OWN_NAMES).messages
    if given != "messages":
        if isinstance(row.get(given), list):
            yield given
        return
    order = ("messages", *LISTS) if naming.columns is not None else (*LISTS, "messages")
    for column in order:
        if _is_list_of_messages(row.get(column), naming):
            yield column
    others = _OTHER_COLUMNS.union(mapped_columns(naming.columns).values(), order)
    for column, value in row.items():
        if column not in others and _is_list_of_messages(value, naming):
            yield column


def _is_list_of_messages(value: object, naming: Naming) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    columns = naming.columns_of(value)
    return isinstance(value[0].get(columns.role), str) and columns.content in value[0]


def sharegpt_messages(row: Row, naming: Naming) -> RawMessages:
    """A list of messages under any name, behind the row's system message where it has one."""
    column = next(list_columns(row, naming), None)
    if column is None:
        raise DataError(_missing("list of messages", "sharegpt", row, naming.columns))
    return [*_system(row, naming.columns), *cast(RawMessages, renamed(row[column], naming))]


def instruction_messages(row: Row, naming: Naming) -> RawMessages:
    """One exchange from columns, behind the system message and the exchanges of `history`."""
    columns = naming.columns
    answer = _text(row, "output", "instruction", columns)
    return [*_question(row, columns, "instruction"), {"role": "assistant", "content": answer}]


def prompt_completion_messages(row: Row, naming: Naming) -> RawMessages:
    """A prompt and what follows it, each a text or a list of messages."""
    columns = naming.columns
    prompt = required_column(row, "prompt", "prompt_completion", columns)
    completion = required_column(row, "completion", "prompt_completion", columns)
    system = _system(row, columns)
    return [*system, *_turns(row, prompt, "user", naming), *_turns(row, completion, "assistant", naming)]


def preference_messages(row: Row, naming: Naming) -> tuple[RawMessages, RawMessages]:
    """The conversations with the chosen and with the rejected answer.

    An answer that begins with the user or the system holds its prompt, and stands for itself.
    """
    names = [required_column(row, name, "preference", naming.columns) for name in ("chosen", "rejected")]
    answers = [_turns(row, column, "assistant", naming) for column in names]
    is_whole = [bool(answer) and _role(answer[0]) in ("user", "system") for answer in answers]
    if not all(is_whole):
        prompt = _preference_prompt(row, naming, names)
        answers = [answer if whole else [*prompt, *answer] for answer, whole in zip(answers, is_whole, strict=True)]
    return answers[0], answers[1]


def unpaired_form(row: Row, naming: Naming) -> RowFormat:
    """The format by which the conversation of a rated row is read. Raises `DataError` where there is none."""
    if column_of(row, "prompt", naming.columns) and column_of(row, "completion", naming.columns):
        return "prompt_completion"
    if column_of(row, "instruction", naming.columns) and column_of(row, "output", naming.columns):
        return "instruction"
    if next(list_columns(row, naming), None) is None:
        raise DataError(_missing("conversation", "unpaired_preference", row, naming.columns))
    return "sharegpt"


def label_of(row: Row, naming: Naming) -> bool:
    """Whether the answer of a rated row is desirable."""
    column = required_column(row, "label", "unpaired_preference", naming.columns)
    value = row[column]
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        found = f"{value:g}" if isinstance(value, int | float) else describe(value)
        raise DataError(
            f"`{column}` is {found}; expected true for a desirable answer, or false (1 and 0 count as well)"
        )
    return bool(value)


def _preference_prompt(row: Row, naming: Naming, answers: list[str]) -> RawMessages:
    """What both answers reply to: a prompt, an instruction, or a list of messages."""
    column = column_of(row, "prompt", naming.columns)
    if column is not None:
        return [*_system(row, naming.columns), *_turns(row, column, "user", naming)]
    if column_of(row, "instruction", naming.columns) is not None:
        return _question(row, naming.columns, "preference")
    column = next((name for name in list_columns(row, naming) if name not in answers), None)
    if column is not None:
        return [*_system(row, naming.columns), *cast(RawMessages, renamed(row[column], naming))]
    raise DataError(_missing(f"{names_of('prompt', naming.columns)} column", "preference", row, naming.columns))


def _question(row: Row, columns: ColumnNames | None, row_format: RowFormat) -> RawMessages:
    """System message, earlier exchanges, and the instruction with what it is about."""
    instruction = _text(row, "instruction", row_format, columns)
    column = column_of(row, "input", columns)
    about = "" if column is None else checked_text(row, column)
    parts = [about, instruction] if column == BEFORE_INSTRUCTION else [instruction, about]
    content = "\n\n".join(part for part in parts if part.strip()) if about.strip() else instruction
    return [*_system(row, columns), *_history(row, columns), {"role": "user", "content": content}]


def _system(row: Row, columns: ColumnNames | None) -> RawMessages:
    column = column_of(row, "system", columns)
    text = "" if column is None else checked_text(row, column)
    return [{"role": "system", "content": text}] if text.strip() else []


def _history(row: Row, columns: ColumnNames | None) -> Iterator[dict[str, Any]]:
    column = column_of(row, "history", columns)
    pairs = [] if column is None else row[column]
    if not isinstance(pairs, list):
        raise DataError(f"`{column}` is {describe(pairs)}; expected a list of pairs of texts [user, assistant]")
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"entry {number} of `{column}` is no pair of texts; expected [user, assistant]")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _turns(row: Row, column: str, role: str, naming: Naming) -> RawMessages:
    """A column as messages: a text is one of `role`."""
    value = row[column]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict | list):
        messages = [value] if isinstance(value, dict) else value
        return cast(RawMessages, renamed(messages, naming))
    raise DataError(f"`{column}` is {describe(value)}; expected a text or a list of messages")


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _text(row: Row, name: str, row_format: RowFormat, columns: ColumnNames | None) -> str:
    return checked_text(row, required_column(row, name, row_format, columns))


def checked_text(row: Row, column: str) -> str:
    """The text in a column. Raises `DataError` where it holds something else."""
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"`{column}` is {describe(value)}; expected a text")
    return value


def required_column(row: Row, name: str, row_format: RowFormat, columns: ColumnNames | None) -> str:
    """The column of a row for one of `COLUMNS`. Raises `DataError` where there is none."""
    column = column_of(row, name, columns)
    if column is None:
        raise DataError(_missing(f"{names_of(name, columns)} column", row_format, row, columns))
    return column


def _missing(what: str, row_format: RowFormat, row: Row, columns: ColumnNames | None) -> str:
    found = ", ".join(name if row[name] is not None else f"{name} (null)" for name in sorted(row)) or listed(row)
    return f"no {what} (found: {found}); rows of the format {row_format} have {needs(row_format, columns)}"

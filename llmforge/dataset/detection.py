"""Which format rows have, told from the first ones.

In: records of one source, and how the job names columns and roles. Out: a `DetectedFormat` with its evidence in words,
or a `DataError` that says what was found and what to set. Only the names of columns and the kinds of their values
count; whether a row is right shows when it is read. docs/data.md has the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from llmforge.config.data import ColumnNames, DatasetConfig, RowFormat
from llmforge.dataset.known_names import (
    KNOWN_ROLES,
    LISTS,
    OWN_NAMES,
    ROLE_NAMES,
    Row,
    column_of,
    describe,
    listed,
    mapped_columns,
    needs,
)
from llmforge.dataset.message_lists import Naming
from llmforge.dataset.row_documents import LABEL
from llmforge.dataset.row_formats import list_columns
from llmforge.dataset.rows import decode_record
from llmforge.dataset.sources import Record
from llmforge.errors import DataError

_FORMATS = tuple(row_format for row_format in get_args(RowFormat) if row_format != "auto")
_READ_BY: dict[str, tuple[RowFormat, ...]] = {
    **dict.fromkeys(("messages", "role", "content"), ("messages", "sharegpt", "unpaired_preference")),
    **dict.fromkeys(("instruction", "input", "history"), ("instruction", "preference", "unpaired_preference")),
    "output": ("instruction", "unpaired_preference"),
    "prompt": ("prompt_completion", "preference", "unpaired_preference"),
    "completion": ("prompt_completion", "unpaired_preference"),
    "label": ("unpaired_preference",),
    **dict.fromkeys(("chosen", "rejected"), ("preference",)),
    "text": ("text", "segments"),
    "segments": ("segments",),
}
"""The formats that read a column that a job may name."""


@dataclass(frozen=True)
class DetectedFormat:
    """The format of the rows of a source."""

    format: RowFormat
    evidence: str
    """Such as "`conversations` is a list of {from, value} in 100 of the first 100 rows"."""


class _Sign(NamedTuple):
    """What speaks for a format in one row."""

    columns: tuple[str, ...]
    """What it would be read from."""
    found: str
    """In words."""


_Signs = dict[RowFormat, _Sign]
_Find = Callable[[Row, DatasetConfig], _Sign | None]


def detect_format(records: Sequence[Record], dataset: DatasetConfig, *, rated: bool = False) -> DetectedFormat:
    """The format that fits all rows, or the most of them where some are bad. Labels count only where answers are to be
    `rated`; elsewhere they are the user's own.

    Records that are no JSON objects are passed over. Raises `DataError` where there are no others, where no format
    fits, and where several fit and it matters which is taken.
    """
    rows = _decoded(records)
    kinds_of_signs = {**_SIGNS, "unpaired_preference": _unpaired} if rated else _SIGNS
    signs = [found for found in (_find(row, dataset, kinds_of_signs) for row in rows) if found]
    signs = signs or [found for found in (_find(row, dataset, _FAINT_SIGNS) for row in rows) if found]
    if not signs:
        raise DataError(_nothing_fits(rows, dataset))
    counts = Counter(row_format for found in signs for row_format in found)
    fitting = [row_format for row_format in _FORMATS if 2 * counts[row_format] > len(signs)]
    if not fitting:
        raise DataError(_nothing_in_common(signs, len(rows)))
    best = _best(_mapped(fitting, dataset.columns), counts)
    chosen = _choose(best, signs)
    if chosen is None:
        raise DataError(_several_fit(best, signs, len(rows)))
    kinds = Counter(found[chosen].found for found in signs if chosen in found)
    evidence = ", ".join(f"{kind} in {count} of the first {len(rows)} rows" for kind, count in kinds.most_common())
    return DetectedFormat(chosen, evidence + _passed_over(chosen, fitting, signs))


def _decoded(records: Sequence[Record]) -> list[dict[str, Any]]:
    rows, reasons = [], []
    for record in records:
        try:
            rows.append(decode_record(record))
        except DataError as error:
            reasons.append(str(error))
    if not rows:
        first = f" (the first: {reasons[0]})" if reasons else ""
        raise DataError(f"none of the first {len(records)} rows is a JSON object{first}; expected one object per line")
    return rows


def _find(row: Row, dataset: DatasetConfig, kinds: dict[RowFormat, _Find]) -> _Signs:
    found = {row_format: find(row, dataset) for row_format, find in kinds.items()}
    return {row_format: sign for row_format, sign in found.items() if sign is not None}


def _messages(row: Row, dataset: DatasetConfig) -> _Sign | None:
    """A list in llmforge's names or the job's."""
    own, naming = dataset.columns or OWN_NAMES, Naming(dataset.columns, dataset.roles or {}, others=False)
    value = row.get(own.messages)
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict) or not isinstance(first.get(own.role), str) or own.content not in first:
        return None
    if isinstance(value, list) and _has_roles_of_others(value, own.role, naming):
        return None
    return _Sign((own.messages,), f"`{own.messages}` is a list of {{{own.role}, {own.content}}}")


def _has_roles_of_others(messages: list[Any], column: str, naming: Naming) -> bool:
    roles = [raw.get(column) for raw in messages if isinstance(raw, dict)]
    texts = [role for role in roles if isinstance(role, str)]
    return any(naming.role(role) not in ROLE_NAMES and role.lower() in KNOWN_ROLES for role in texts)


def _sharegpt(row: Row, dataset: DatasetConfig) -> _Sign | None:
    """A list in any names that are known, under any name."""
    naming = Naming(dataset.columns, dataset.roles or {}, others=True)
    columns = tuple(list_columns(row, naming))
    value = row[columns[0]] if columns else None
    if not isinstance(value, list):
        return None
    names = naming.columns_of(value)
    return _Sign(columns, f"`{columns[0]}` is a list of {{{names.role}, {names.content}}}")


def _columns(*names: str, kinds: tuple[type, ...]) -> _Find:
    """Columns of these kinds, all of them."""

    def find(row: Row, dataset: DatasetConfig) -> _Sign | None:
        columns = [column_of(row, name, dataset.columns) for name in names]
        present = [column for column in columns if column is not None and isinstance(row[column], kinds)]
        if len(present) < len(names):
            return None
        return _Sign(tuple(present), " and ".join(f"`{column}` is {describe(row[column])}" for column in present))

    return find


def _segments(row: Row, dataset: DatasetConfig) -> _Sign | None:
    column = column_of(row, "segments", dataset.columns)
    value = row[column] if column is not None else None
    first = value[0] if isinstance(value, list) and value else None
    if column is None or not isinstance(first, dict):
        return None
    own, text = dataset.columns or OWN_NAMES, column_of(first, "text", dataset.columns)
    loss = next((name for name in (own.train, own.weight, LABEL) if name in first), None)
    return _Sign((column,), f"`{column}` is a list of {{{text}, {loss}}}") if text is not None and loss else None


def _unpaired(row: Row, dataset: DatasetConfig) -> _Sign | None:
    """A label beside anything that holds a conversation."""
    label = _columns("label", kinds=(bool, int, float))(row, dataset)
    forms = (_SIGNS[row_format](row, dataset) for row_format in ("prompt_completion", "instruction", "sharegpt"))
    form = next((sign for sign in forms if sign is not None), None)
    if label is None or form is None:
        return None
    return _Sign((*label.columns, *form.columns), f"{label.found} beside {form.found}")


def _list_named(*names: str) -> _Find:
    """A list in a column that is known for messages, whatever is in it."""

    def find(row: Row, dataset: DatasetConfig) -> _Sign | None:
        given = (dataset.columns or OWN_NAMES).messages
        column = next((name for name in (names or (given,)) if isinstance(row.get(name), list)), None)
        return _Sign((column,), f"`{column}` is a list") if column is not None else None

    return find


_SIGNS: dict[RowFormat, _Find] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "instruction": _columns("instruction", "output", kinds=(str,)),
    "prompt_completion": _columns("prompt", "completion", kinds=(str, list, dict)),
    "preference": _columns("chosen", "rejected", kinds=(str, list, dict)),
    "text": _columns("text", kinds=(str,)),
    "segments": _segments,
}
_FAINT_SIGNS: dict[RowFormat, _Find] = {"messages": _list_named(), "sharegpt": _list_named(*LISTS)}
"""Where nothing else speaks for anything, so that what is wrong in each row can be said."""


def _mapped(fitting: list[RowFormat], columns: ColumnNames | None) -> list[RowFormat]:
    """The formats that read a column that the job names, where there are such."""
    meant = {row_format for name in mapped_columns(columns) for row_format in _READ_BY.get(name, ())}
    return [row_format for row_format in fitting if row_format in meant] or fitting


def _best(fitting: list[RowFormat], counts: Counter[RowFormat]) -> list[RowFormat]:
    """Those that fit the most rows. Plain text counts only where there is nothing else: many rows have a `text`."""
    structured = [row_format for row_format in fitting if row_format != "text"] or fitting
    most = max(counts[row_format] for row_format in structured)
    return [row_format for row_format in structured if counts[row_format] == most]


def _choose(best: list[RowFormat], signs: Sequence[_Signs]) -> RowFormat | None:
    """The one to take, if it is clear: pairs, then labels, then messages, whose other columns are the user's own."""
    for row_format in ("preference", "unpaired_preference", "messages"):
        if row_format in best:
            return row_format
    if "sharegpt" in best:
        lists = next(found["sharegpt"].columns for found in signs if "sharegpt" in found)
        return "sharegpt" if lists[0] in (*LISTS, "messages") or len(best) == len(lists) == 1 else None
    return best[0] if len(best) == 1 else None


def _passed_over(chosen: RowFormat, fitting: Sequence[RowFormat], signs: Sequence[_Signs]) -> str:
    """The formats that would read other columns of the same rows, for people."""
    if chosen in ("preference", "unpaired_preference"):  # what the answers reply to may look like a format of its own
        return ""
    taken = {column for found in signs if chosen in found for column in found[chosen].columns}
    others = [
        row_format
        for row_format in fitting
        if not (row_format == "sharegpt" and "messages" in fitting)  # which reads what the other does
        and taken.isdisjoint(column for found in signs if row_format in found for column in found[row_format].columns)
    ]
    return f"; {' and '.join(others)} would fit as well (dataset.format)" if others else ""


def _nothing_fits(rows: Sequence[Row], dataset: DatasetConfig) -> str:
    columns = listed(dict.fromkeys(column for row in rows for column in row))
    lines = [f"  {row_format}: {needs(row_format, dataset.columns)}" for row_format in _FORMATS]
    return "\n".join(
        [
            f"the first {len(rows)} rows have no format that is known (found: {columns}); set dataset.format, and "
            "dataset.columns where the columns have other names. The formats are:",
            *lines,
        ]
    )


def _nothing_in_common(signs: Sequence[_Signs], num_rows: int) -> str:
    counts = Counter(what for found in signs for what in {sign.found: None for sign in found.values()})
    kinds = ", ".join(f"{kind} in {count}" for kind, count in counts.most_common())
    return (
        f"the first {num_rows} rows have no format in common: {kinds}; put rows of different formats into different "
        "files, or set dataset.format"
    )


def _several_fit(best: Sequence[RowFormat], signs: Sequence[_Signs], num_rows: int) -> str:
    first = {row_format: next(found[row_format] for found in signs if row_format in found) for row_format in best}
    if len(best) == 1:
        lists = ", ".join(f"`{column}`" for column in first[best[0]].columns)
        return (
            f"the first {num_rows} rows hold several lists of messages ({lists}); "
            "name the one that is meant in dataset.columns.messages"
        )
    kinds = [f"{row_format} ({sign.found})" for row_format, sign in first.items()]
    return (
        f"the first {num_rows} rows fit several formats: {', '.join(kinds)}; set dataset.format to the one that is "
        "meant"
    )

"""Raw rows to conversations and documents.

In: one record of the data (a line of JSONL, or an object from another kind of file), the format of the rows, and how
the data name columns and roles. Out: a `Conversation`, or a `Document` where the row holds its text itself, or a
`DataError` whose text is the reason alone, in the data's own names; the caller knows file and line. Columns without a
meaning here are the user's own and are left alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from llmforge.config.data import DatasetConfig, RowFormat
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.content import BYTE_ORDER_MARK
from llmforge.dataset.known_names import LISTS, OWN_NAMES, Row, column_of, flow, listed, mapped_columns
from llmforge.dataset.message_lists import (
    Naming,
    column_advice,
    known_roles,
    likely_columns,
    naming_fault,
    renamed,
)
from llmforge.dataset.plain_rows import parse_plain
from llmforge.dataset.row_documents import segments_document, text_document
from llmforge.dataset.row_formats import (
    RawMessages,
    instruction_messages,
    label_of,
    list_columns,
    preference_messages,
    prompt_completion_messages,
    sharegpt_messages,
    unpaired_form,
)
from llmforge.dataset.sources import Record
from llmforge.errors import DataError
from llmforge.prompt.document import Document, TrainingRow
from llmforge.prompt.messages import Conversation, parse_conversation

_AS_IT_IS = DatasetConfig()
_NO_TOOLS = ("[]", "{}", "null")
_READERS: dict[RowFormat, Callable[[Row, Naming], RawMessages]] = {
    "sharegpt": sharegpt_messages,
    "instruction": instruction_messages,
    "prompt_completion": prompt_completion_messages,
}
_DOCUMENT_READERS: dict[RowFormat, Callable[[Row, Naming], Document]] = {
    "text": text_document,
    "segments": segments_document,
}


class RatedAnswer(NamedTuple):
    """A conversation and what is said of its last answer."""

    conversation: Conversation
    is_desirable: bool


def parse_row(record: Record, prompt_format: PromptFormat, dataset: DatasetConfig = _AS_IT_IS) -> TrainingRow:
    """One record as what is trained; of a preference row, the conversation with the chosen answer.

    `dataset.format` says how it is read; `auto` counts as `messages` here, and is resolved before by `detect_format`.
    A column that `dataset` maps is read by its name in the data alone, even where a column of llmforge's name is there.
    """
    row_format = dataset.format
    if row_format in ("auto", "messages"):
        return _parse_messages(record, prompt_format, dataset)
    if row_format == "preference":
        return parse_preference(record, prompt_format, dataset)[0]
    row = decode_record(record)
    naming = Naming.of(dataset)
    document_reader = _DOCUMENT_READERS.get(row_format)
    if document_reader is not None:
        return document_reader(row, naming)
    _refuse_tools(row)
    if row_format == "unpaired_preference":
        row_format = unpaired_form(row, naming)
    messages = _READERS[row_format](row, naming)
    try:
        return parse_conversation(messages, prompt_format)
    except DataError as error:
        raise DataError(_explained(error, row, naming, row_format)) from error


def parse_preference(
    record: Record, prompt_format: PromptFormat, dataset: DatasetConfig
) -> tuple[Conversation, Conversation]:
    """One preference row as the conversations with the chosen and the rejected answer, alike but for the last message.

    Raises `DataError` where they differ in more or in nothing.
    """
    row = decode_record(record)
    naming = Naming.of(dataset)
    _refuse_tools(row)
    conversations = []
    for name, messages in zip(("chosen", "rejected"), preference_messages(row, naming), strict=True):
        try:
            conversations.append(parse_conversation(messages, prompt_format))
        except DataError as error:
            column = column_of(row, name, naming.columns)
            raise DataError(f"{error} (the prompt with `{column}`)") from error
    chosen, rejected = conversations
    texts = [_compared(conversation, prompt_format) for conversation in (chosen, rejected)]
    if texts[0][:-1] != texts[1][:-1]:
        raise DataError(
            "the chosen and the rejected answer have different prompts; everything before the last message must be "
            "alike, or they cannot be compared: remove the row"
        )
    if texts[0] == texts[1]:
        raise DataError("the chosen and the rejected answer are equal; there is nothing to prefer: remove the row")
    return chosen, rejected


def parse_pair(
    record: Record, prompt_format: PromptFormat, dataset: DatasetConfig
) -> tuple[Conversation, Conversation]:
    """As `parse_preference`, for answers that are compared. Raises `DataError` where one has a weight of its own."""
    pair = parse_preference(record, prompt_format, dataset)
    for conversation in pair:
        _refuse_weight(conversation)
    return pair


def parse_rated(record: Record, prompt_format: PromptFormat, dataset: DatasetConfig) -> list[RatedAnswer]:
    """One row as the answers that are rated: its own, or both of a pair, the chosen one as desirable."""
    if dataset.format == "preference":
        chosen, rejected = parse_pair(record, prompt_format, dataset)
        return [RatedAnswer(chosen, True), RatedAnswer(rejected, False)]
    row = decode_record(record)
    is_desirable = label_of(row, Naming.of(dataset))
    conversation = parse_row(row, prompt_format, dataset)
    assert isinstance(conversation, Conversation)
    _refuse_weight(conversation)
    return [RatedAnswer(conversation, is_desirable)]


def _refuse_weight(conversation: Conversation) -> None:
    if conversation.messages[-1].weight != 1:
        raise DataError(
            "an answer has a `weight` or `train` of its own, which means nothing in a comparison; remove it"
        )


def _compared(conversation: Conversation, prompt_format: PromptFormat) -> list[tuple[str, str]]:
    """Roles and contents, as the prompt format places them."""
    strips = prompt_format.strip_whitespace
    return [(role, content.strip() if strips else content) for role, content, _ in conversation.messages]


def decode_record(record: Record, expected: str = "a JSON object") -> dict[str, Any]:
    """The columns of a record. Raises `DataError` for a line that is no JSON object."""
    if isinstance(record, dict):
        return record
    try:
        row = msgspec.json.decode(record.removeprefix(BYTE_ORDER_MARK))
    except msgspec.DecodeError as error:
        nulls = "; it has NUL bytes, as a crash leaves them behind: write the file anew" if b"\0" in record else ""
        raise DataError(f"not JSON: {error}{nulls}") from error
    except UnicodeDecodeError as error:  # counts from the begin of a string of the row, which says nothing here
        found = f"{error.reason} {error.object[error.start]:#04x}"
        raise DataError(f"not UTF-8: {found}; save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError("not JSON of a row: too many brackets inside each other") from error
    if not isinstance(row, dict):
        raise DataError(f"expected {expected}")
    return row


def _parse_messages(record: Record, prompt_format: PromptFormat, dataset: DatasetConfig) -> Conversation:
    """The format `messages`: a row in llmforge's own names is read as it stands, which is the fast path."""
    columns = dataset.columns
    if columns is None and dataset.roles is None and isinstance(record, bytes):
        conversation = parse_plain(record)
        if conversation is not None:
            return conversation
    column = "messages" if columns is None else columns.messages
    row = decode_record(record, f"a JSON object with a `{column}` list")
    if column not in row:
        raise DataError(_without_messages(row, Naming.of(dataset)))
    _refuse_tools(row)
    naming = Naming.of(dataset)
    messages = renamed(row[column], naming)
    if columns is not None and columns.system is not None and isinstance(messages, list):
        system = row.get(columns.system)
        messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    try:
        return parse_conversation(messages, prompt_format)
    except DataError as error:
        raise DataError(_explained(error, row, naming, "messages")) from error


def _refuse_tools(row: Row) -> None:
    tools = row.get("tools")
    if tools and not (isinstance(tools, str) and (tools.isspace() or tools.strip() in _NO_TOOLS)):
        raise DataError(
            "the row has `tools`, for which a prompt format has no place; write them as text into the system message, "
            "as the model shall see them, and remove the column, or remove the row"
        )


def _explained(error: DataError, row: Row, naming: Naming, row_format: RowFormat) -> str:
    """The reason why messages are refused, in the data's own names."""
    if row_format in ("messages", "sharegpt"):
        own = (naming.columns or OWN_NAMES).messages
        column = own if row_format == "messages" else next(list_columns(row, naming), own)
        return naming_fault(row[column], naming) or f"{error}{_as_mapped(naming)}{_as_known(row[column], naming)}"
    names = ("prompt", "completion") if row_format == "prompt_completion" else ("instruction", "output")
    user, assistant = (column_of(row, name, naming.columns) for name in names)
    return f"{error} (read as {row_format}: the user's from `{user}`, the assistant's from `{assistant}`)"


def _without_messages(row: Row, naming: Naming) -> str:
    own = naming.columns or OWN_NAMES
    found = f"no `{own.messages}` column (found: {listed(row)})"
    likely = next((name for name in LISTS if isinstance(row.get(name), list)), None)
    value = row.get(likely) if likely is not None else None
    if likely is None or not isinstance(value, list):
        return found
    first = next((raw for raw in value if isinstance(raw, dict)), {})
    advised = likely_columns(first, Naming(naming.columns, naming.roles, others=False).columns_of(value))
    return found + column_advice(naming.columns, {"messages": likely} | advised)


def _as_mapped(naming: Naming) -> str:
    """How the job reads the columns, where a reason speaks of them by llmforge's names."""
    mapped = mapped_columns(naming.columns)
    return f" (read by dataset.columns: {flow(mapped)})" if mapped else ""


def _as_known(messages: object, naming: Naming) -> str:
    """Which roles are read by the meaning that they are known to have."""
    known = known_roles(messages, naming)
    return f" (roles are read as {flow(known)})" if known else ""

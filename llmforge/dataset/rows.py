"""Raw rows to conversations.

In: one line of a JSONL file. Out: a `Conversation`, or a `DataError` whose text is the reason alone; the caller knows
file and line. Columns other than `messages` are the user's own and are left alone.
"""

import msgspec

from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import DataError
from llmforge.prompt.messages import Conversation, parse_conversation

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_row(line: bytes, prompt_format: PromptFormat) -> Conversation:
    """One JSONL line in the OpenAI format `{"messages": [{"role": ..., "content": ...}, ...]}`."""
    try:
        row = msgspec.json.decode(line.removeprefix(BYTE_ORDER_MARK))
    except msgspec.DecodeError as error:
        raise DataError(f"not JSON: {error}") from error
    except UnicodeDecodeError as error:  # counts from the begin of a string of the row, which says nothing here
        found = f"{error.reason} {error.object[error.start]:#04x}"
        raise DataError(f"not UTF-8: {found}; save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError("not JSON of a row: too many brackets inside each other") from error
    if not isinstance(row, dict):
        raise DataError("expected a JSON object with a `messages` list")
    if "messages" not in row:
        found = ", ".join(sorted(row)) or "no column"
        raise DataError(f"no `messages` column (found: {found})")
    return parse_conversation(row["messages"], prompt_format)

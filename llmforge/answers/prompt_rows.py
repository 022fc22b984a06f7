"""A file of prompts: one JSON object with `messages` on every line.

In: the bytes of a JSONL file. Out: its rows with their line numbers, and what is wrong with the others. It knows no
prompt format, so it needs no model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmforge.errors import DataError

PROBABILITIES = "probabilities"
"""Column of an answered row, where a classifier has answered."""


@dataclass(frozen=True)
class PromptRow:
    """One line."""

    line: int
    """Counted from 1."""
    columns: dict[str, object]
    """All that stands there."""

    @property
    def messages(self) -> list[object]:
        """The prompt."""
        messages = self.columns["messages"]
        assert isinstance(messages, list)
        return messages

    def answered(self, text: str, probabilities: Mapping[str, float] | None = None) -> str:
        """The line with the answer behind its messages, without its end; of labels also their probabilities."""
        answer = {"role": "assistant", "content": text}
        found = {} if probabilities is None else {PROBABILITIES: dict(probabilities)}
        return json.dumps({**self.columns, "messages": [*self.messages, answer], **found}, ensure_ascii=False)

    def check_no_probabilities(self) -> None:
        """Raise `DataError` where the answer of a classifier would replace what stands there."""
        if PROBABILITIES in self.columns:
            raise DataError(
                f"found a column `{PROBABILITIES}`, allowed is none with a classifier, which writes its own there; "
                "rename it"
            )


@dataclass(frozen=True)
class CheckedRows:
    """The rows that passed a check, and one line of text for each one that did not."""

    rows: list[PromptRow]
    problems: list[str]


def read_prompt_rows(data: bytes, source: str) -> CheckedRows:
    """The rows of every line that is not blank; `source` names the file in problems."""
    # Not `splitlines`: it takes characters for line ends that may stand inside a JSON string.
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    rows: list[PromptRow] = []
    problems: list[str] = []
    for number, line in lines:
        if line.strip():
            try:
                rows.append(PromptRow(number, _parse_line(line)))
            except DataError as error:
                problems.append(f"{source}:{number}: {error}")
    return CheckedRows(rows, problems)


def check_prompt_rows(rows: Sequence[PromptRow], source: str, check: Callable[[PromptRow], object]) -> CheckedRows:
    """The rows for which `check` raises no `DataError`."""
    passed: list[PromptRow] = []
    problems: list[str] = []
    for row in rows:
        try:
            check(row)
        except DataError as error:
            problems.append(f"{source}:{row.line}: {error}")
        else:
            passed.append(row)
    return CheckedRows(passed, problems)


def _parse_line(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise DataError("expected an object with a `messages` list")
    return row

"""Rows that are not used: where they stand, why, and how they are told to a person."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

MAX_PRINTED_ROWS = 20

INVALID = "invalid"
NO_TRAINED_TOKEN = "no trained token"
TOO_LONG = "longer than context_length"
DUPLICATE = "duplicate of an earlier row"
BEYOND_SHARE = "beyond the share of its source"
NOTHING_LEFT = "no trained token within context_length"


@dataclass(frozen=True, slots=True)
class UnusedRow:
    """One row of the user's data that is not trained on."""

    uri: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.uri}:{self.line}: {self.reason}"


@dataclass
class UnusedRows:
    """All rows left out so far, counted by kind of reason."""

    rows: list[UnusedRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, rows: Sequence[UnusedRow]) -> None:
        """Leave out rows for one kind of reason."""
        if rows:
            self.counts[kind] += len(rows)
            self.rows += rows


def list_rows(rows: Sequence[UnusedRow], all_rows_uri: str) -> str:
    """Lines for a message: the first rows, and where all of them stand if there are more."""
    lines = [f"  {row}" for row in rows[:MAX_PRINTED_ROWS]]
    if len(rows) > MAX_PRINTED_ROWS:
        lines.append(f"  ... and {len(rows) - MAX_PRINTED_ROWS} more; all of them: {all_rows_uri}")
    return "\n".join(lines)


def as_jsonl(rows: Iterable[UnusedRow]) -> bytes:
    """One JSON object per row."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows).encode()

"""Rows that are left out: counted, listed, written down."""

from __future__ import annotations

import json

from llmforge.dataset.unused import MAX_PRINTED_ROWS, UnusedRow, UnusedRows, as_jsonl, list_rows


def row(line: int, reason: str = "not JSON") -> UnusedRow:
    return UnusedRow("s3://b/a.jsonl", line, reason)


def test_counts_by_kind() -> None:
    unused = UnusedRows()
    unused.add("invalid", [])
    assert (unused.rows, dict(unused.counts)) == ([], {})
    unused.add("invalid", [row(1), row(2)])
    unused.add("no trained token", [row(3)])
    unused.add("invalid", [row(4)])
    assert unused.rows == [row(1), row(2), row(3), row(4)]
    assert unused.counts == {"invalid": 3, "no trained token": 1}


def test_lists_for_a_message() -> None:
    assert str(row(7)) == "s3://b/a.jsonl:7: not JSON"
    assert list_rows([], "all") == ""
    few = list_rows([row(line) for line in range(1, MAX_PRINTED_ROWS + 1)], "all").splitlines()
    assert few == [f"  s3://b/a.jsonl:{line}: not JSON" for line in range(1, MAX_PRINTED_ROWS + 1)]
    many = list_rows([row(line) for line in range(1, MAX_PRINTED_ROWS + 4)], "s3://b/unused.jsonl").splitlines()
    assert many == [*few, "  ... and 3 more; all of them: s3://b/unused.jsonl"]


def test_a_file_with_all_of_them() -> None:
    lines = as_jsonl([row(1, 'a "quoted"\nreason'), row(2, "é")]).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"uri": "s3://b/a.jsonl", "line": 1, "reason": 'a "quoted"\nreason'},
        {"uri": "s3://b/a.jsonl", "line": 2, "reason": "é"},
    ]
    assert as_jsonl([]) == b""

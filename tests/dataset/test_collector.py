"""Between the halves of the data stage: tables sorted into splits, rows counted, examples read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmforge.dataset.collector import Collected, ExampleCollector, Examples, Pieces
from llmforge.dataset.example import ExampleBatch
from llmforge.dataset.example_table import EXAMPLE_SCHEMA
from llmforge.dataset.stats import CheckTotals
from llmforge.dataset.unused import DUPLICATE, NO_TRAINED_TOKEN, UnusedRow


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=EXAMPLE_SCHEMA)


def good(line: int, ids: list[int], num_trained: int = 1, *, valid: bool = False) -> dict[str, Any]:
    weights = [0.0] * (len(ids) - num_trained) + [1.0] * num_trained
    return {
        "uri": "a.jsonl", "line": line, "source": 0, "is_validation": valid, "input_ids": ids, "weights": weights,
        "num_trained": num_trained, "num_prompts": 2, "straddled": line == 1, "ends_with_terminator": line > 1,
        "is_windowed": False,
    }  # fmt: skip


def bad(line: int, reason: str) -> dict[str, Any]:
    return {"uri": "a.jsonl", "line": line, "source": 0, "reason": reason}


def whole(examples: Examples, indexes: list[int]) -> ExampleBatch:
    """Examples as they are."""
    chosen = np.array(indexes, dtype=np.int64)
    return examples.batch(Pieces(chosen, np.zeros_like(chosen), examples.lengths[chosen]))


def collect(folder: Path, *tables: pa.Table) -> Collected:
    with ExampleCollector(folder) as collector:
        for rows in tables:
            collector.add(rows)
    return collector.result()


def test_rows_are_sorted_and_counted(tmp_path: Path) -> None:
    collected = collect(
        tmp_path,
        table(good(1, [1, 2, 3], 2), good(2, [4], 0), bad(3, "not JSON")),
        table(),
        table(good(4, [5, 6], valid=True), good(5, [7, 8]), good(6, [9, 9, 9], 0, valid=True), bad(7, "no role")),
    )
    assert collected.rows_in == 7
    assert collected.invalid == [UnusedRow("a.jsonl", 3, "not JSON"), UnusedRow("a.jsonl", 7, "no role")]
    assert collected.unused.rows == [UnusedRow("a.jsonl", line, NO_TRAINED_TOKEN) for line in (2, 6)]
    assert collected.unused.counts == {NO_TRAINED_TOKEN: 2}
    examples = Examples(collected.folder)
    assert collected.checks == CheckTotals(rows=3, prompts=6, straddled=1, ends_with_terminator=2)
    assert examples.lengths.tolist() == [3, 2, 2]
    assert examples.is_validation.tolist() == [False, True, False]
    assert [(one.input_ids.tolist(), one.labels.tolist()) for one in whole(examples, [2, 0])] == [
        ([7, 8], [-100, 8]),
        ([1, 2, 3], [-100, 2, 3]),
    ]
    parts = examples.batch(Pieces(np.array([0, 2, 0]), np.array([0, 1, 1]), np.array([2, 1, 2])))
    assert [(one.input_ids.tolist(), one.labels.tolist()) for one in parts] == [
        ([1, 2], [-100, 2]),
        ([8], [-100]),
        ([2, 3], [-100, 3]),
    ]
    assert examples.places(np.array([1, 0])) == [("a.jsonl", 4), ("a.jsonl", 1)]
    assert examples.places(np.array([], dtype=np.int64)) == []
    assert collected.rows_in == len(examples.lengths) + len(collected.invalid) + len(collected.unused.rows)


def test_weights_come_back_where_there_are_some(tmp_path: Path) -> None:
    weighted = good(1, [1, 2, 3], 2) | {"weights": [0.0, 0.5, 2.0]}
    examples = Examples(collect(tmp_path, table(weighted, good(2, [4, 5]))).folder)
    first, second = whole(examples, [0, 1])
    assert first.weights is not None
    assert first.weights.tolist() == [0.0, 0.5, 2.0]
    assert second.weights is None


def test_duplicates_are_left_out_wherever_they_occur(tmp_path: Path) -> None:
    def row(line: int, digest: bytes, *, valid: bool = False) -> dict[str, Any]:
        return good(line, [line, 1], valid=valid) | {"digest": digest}

    collected = collect(
        tmp_path,
        table(row(1, b"a"), row(2, b"b"), row(3, b"a")),
        table(row(4, b"b"), row(5, b"c"), row(6, b"a", valid=True), row(7, b"d", valid=True)),
    )
    assert [row.line for row in collected.unused.rows] == [3, 4, 6]
    assert {row.reason for row in collected.unused.rows} == {DUPLICATE}
    assert collected.checks.rows == 4
    examples = Examples(collected.folder)
    assert [line for _, line in examples.places(np.arange(4))] == [1, 2, 5, 7]
    assert examples.is_validation.tolist() == [False, False, False, True]


@pytest.mark.parametrize("tables", [[], [table()], [table(bad(1, "x"))]])
def test_nothing_at_all(tables: list[pa.Table], tmp_path: Path) -> None:
    collected = collect(tmp_path, *tables)
    assert collected.rows_in == sum(map(len, tables))
    assert len(Examples(collected.folder).lengths) == 0
    assert collected.unused.rows == []


def test_slices_of_a_table_are_read_at_their_own_offset(tmp_path: Path) -> None:
    whole = table(good(1, [1] * 5), good(2, [2] * 3, 0), good(3, [3] * 2), good(4, [4] * 4, 0))
    collected = collect(tmp_path, whole.slice(1, 3))
    assert Examples(collected.folder).lengths.tolist() == [2]
    assert [row.line for row in collected.unused.rows] == [2, 4]


def test_the_files_are_closed_after_an_error(tmp_path: Path) -> None:
    collector = ExampleCollector(tmp_path)
    with pytest.raises(KeyError), collector:
        collector.add(table(good(1, [1, 2])))
        raise KeyError
    assert collector.rows_in == 1
    assert Examples(tmp_path).lengths.tolist() == [2]

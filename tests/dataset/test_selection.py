"""Which examples are used, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmforge.dataset.collector import Examples
from llmforge.dataset.selection import OverLength, Selection, select, write_selection
from llmforge.dataset.shards import SampleReader
from llmforge.dataset.unused import NOTHING_LEFT, TOO_LONG, UnusedRows
from llmforge.errors import DataError
from tests.dataset.test_collector import collect, good, table

CONTEXT = 4


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    """Of 3, 6, 4 and 7 tokens; of the last, only the last token is trained."""
    rows = [good(1, [1] * 3, 2), good(2, list(range(6)), 5), good(3, [3] * 4), good(4, [4] * 7)]
    return Examples(collect(tmp_path, ["train"], table(*rows)).folders["train"])


def selected(examples: Examples, over_length: OverLength) -> tuple[Selection, UnusedRows]:
    unused = UnusedRows()
    return select("train", examples, CONTEXT, over_length, unused), unused


def test_what_is_too_long_is_left_out(examples: Examples) -> None:
    selection, unused = selected(examples, "drop")
    assert (selection.indexes.tolist(), selection.lengths.tolist(), selection.num_truncated) == ([0, 2], [3, 4], 0)
    assert unused.counts == {TOO_LONG: 2}
    assert [str(row) for row in unused.rows] == [
        "a.jsonl:2: longer than context_length (6 tokens > 4)",
        "a.jsonl:4: longer than context_length (7 tokens > 4)",
    ]


def test_what_is_too_long_is_cut_if_something_trained_stays(examples: Examples, tmp_path: Path) -> None:
    selection, unused = selected(examples, "truncate")
    assert (selection.indexes.tolist(), selection.lengths.tolist(), selection.num_truncated) == (
        [0, 1, 2],
        [3, 4, 4],
        1,
    )
    assert [str(row) for row in unused.rows] == [f"a.jsonl:4: {NOTHING_LEFT}"]
    stats = write_selection(selection, packing=False, path=tmp_path / "train.arrow")
    reader = SampleReader(tmp_path / "train.arrow")
    assert [reader[index].input_ids.tolist() for index in range(3)] == [[1] * 3, [0, 1, 2, 3], [3] * 4]
    assert reader[1].labels.tolist() == [-100, 1, 2, 3]
    assert (stats.examples, stats.samples, stats.tokens, stats.trained_tokens) == (3, 3, 11, 6)
    assert stats.packing_efficiency == 11 / 12


def test_packs_hold_the_same(examples: Examples, tmp_path: Path) -> None:
    selection = select("train", examples, 8, "drop", UnusedRows())
    stats = write_selection(selection, packing=True, path=tmp_path / "train.arrow")
    reader = SampleReader(tmp_path / "train.arrow")
    lengths = [reader[index].example_lengths.tolist() for index in range(len(reader))]
    assert sorted(lengths) == [[3, 4], [6], [7]]
    assert stats.samples == len(reader) == 3


def test_a_job_may_want_all_rows_to_fit(examples: Examples) -> None:
    with pytest.raises(DataError, match=r"2 rows are longer than context_length, and dataset.over_length is error:"):
        selected(examples, "error")


@pytest.mark.parametrize("over_length", ["drop", "truncate"])
def test_nothing_fits(over_length: OverLength, tmp_path: Path) -> None:
    long = Examples(collect(tmp_path, ["train"], table(good(1, [1] * 9))).folders["train"])
    with pytest.raises(DataError, match="no train row fits into 4 tokens: the shortest has 9"):
        selected(long, over_length)


def test_no_row_at_all(tmp_path: Path) -> None:
    empty = Examples(collect(tmp_path, ["train"], table()).folders["train"])
    with pytest.raises(DataError, match="no row is left for training"):
        selected(empty, "drop")
    assert empty.batch(np.array([], dtype=np.int64)).input_ids.tolist() == []

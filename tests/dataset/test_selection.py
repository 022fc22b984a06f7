"""Which examples are used, and what is written of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.config.data import MixtureStrategy
from llmforge.dataset import selection
from llmforge.dataset.collector import Examples
from llmforge.dataset.mixture import mix
from llmforge.dataset.selection import OverLength, Selection, select, write_selection
from llmforge.dataset.shards import SampleReader
from llmforge.dataset.unused import BEYOND_SHARE, NOTHING_LEFT, TOO_LONG, UnusedRows
from llmforge.errors import DataError
from tests.dataset.test_collector import collect, good, table, whole

CONTEXT = 4
MIXED_ROWS = ((1, 3, 0), (2, 3, 0), (3, 5, 0), (4, 3, 1))
"""Line, length and source."""


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    """Of 3, 6, 4 and 7 tokens; of the last, only the last token is trained."""
    rows = [good(1, [1] * 3, 2), good(2, list(range(6)), 5), good(3, [3] * 4), good(4, [4] * 7)]
    return Examples(collect(tmp_path, table(*rows)).folder)


def pieces(chosen: Selection) -> list[tuple[int, int, int]]:
    """(example, start, length) of each."""
    found = chosen.pieces
    return [*zip(found.indexes.tolist(), found.starts.tolist(), found.lengths.tolist(), strict=True)]


def selected(examples: Examples, over_length: OverLength) -> tuple[Selection, UnusedRows]:
    unused = UnusedRows()
    return select("train", examples, CONTEXT, over_length, unused), unused


def test_what_is_too_long_is_left_out(examples: Examples) -> None:
    chosen, unused = selected(examples, "drop")
    assert pieces(chosen) == [(0, 0, 3), (2, 0, 4)]
    assert (chosen.num_rows, chosen.num_truncated) == (2, 0)
    assert unused.counts == {TOO_LONG: 2}
    assert [str(row) for row in unused.rows] == [
        "a.jsonl:2: longer than context_length (6 tokens > 4)",
        "a.jsonl:4: longer than context_length (7 tokens > 4)",
    ]


def test_what_is_too_long_is_cut_if_something_trained_stays(examples: Examples, tmp_path: Path) -> None:
    chosen, unused = selected(examples, "truncate")
    assert pieces(chosen) == [(0, 0, 3), (1, 0, 4), (2, 0, 4)]
    assert (chosen.num_rows, chosen.num_truncated) == (3, 1)
    assert [str(row) for row in unused.rows] == [f"a.jsonl:4: {NOTHING_LEFT}"]
    stats = write_selection(chosen, packing=False, folder=tmp_path)
    reader = SampleReader([tmp_path / "train-00000.arrow"])
    assert [reader[index].input_ids.tolist() for index in range(3)] == [[1] * 3, [0, 1, 2, 3], [3] * 4]
    assert reader[1].labels.tolist() == [-100, 1, 2, 3]
    assert (stats.examples, stats.samples, stats.tokens, stats.trained_tokens) == (3, 3, 11, 6)
    assert stats.packing_efficiency == 11 / 12


def test_packs_hold_the_same(examples: Examples, tmp_path: Path) -> None:
    chosen = select("train", examples, 8, "drop", UnusedRows())
    stats = write_selection(chosen, packing=True, folder=tmp_path)
    reader = SampleReader([tmp_path / "train-00000.arrow"])
    lengths = [reader[index].example_lengths.tolist() for index in range(len(reader))]
    assert sorted(lengths) == [[3, 4], [6], [7]]
    assert stats.samples == len(reader) == 3


def test_a_job_may_want_all_rows_to_fit(examples: Examples) -> None:
    with pytest.raises(DataError, match=r"2 rows are longer than context_length, and dataset.over_length is error:"):
        selected(examples, "error")


@pytest.mark.parametrize("over_length", ["drop", "truncate"])
def test_nothing_fits(over_length: OverLength, tmp_path: Path) -> None:
    long = Examples(collect(tmp_path, table(good(1, [1] * 9))).folder)
    with pytest.raises(DataError, match="no train row fits into 4 tokens: the shortest has 9"):
        selected(long, over_length)


def test_no_row_at_all(tmp_path: Path) -> None:
    empty = Examples(collect(tmp_path, table()).folder)
    with pytest.raises(DataError, match="no row is left for training"):
        selected(empty, "drop")
    assert whole(empty, []).input_ids.tolist() == []


def windowed(line: int, num_tokens: int) -> dict[str, Any]:
    return good(line, list(range(num_tokens)), num_tokens - 1) | {"is_windowed": True}


def test_windows_of_a_text_hold_every_label_once(tmp_path: Path) -> None:
    """Each but the first begins with the token that the one before ended with."""
    rows = [windowed(1, 4), windowed(2, 5), windowed(3, 10), windowed(4, 1) | {"num_trained": 1}, good(5, [5] * 5)]
    examples = Examples(collect(tmp_path, table(*rows)).folder)
    chosen = select("train", examples, CONTEXT, "drop", unused := UnusedRows())
    assert unused.counts == {TOO_LONG: 1}
    windows = [(2, 0, 4), (2, 3, 4), (2, 6, 4)]
    assert pieces(chosen) == [(0, 0, 4), (1, 0, 4), (1, 3, 2), *windows, (3, 0, 1)]
    assert (chosen.num_rows, chosen.num_truncated) == (4, 0)
    stats = write_selection(chosen, packing=False, folder=tmp_path)
    assert (stats.rows, stats.examples, stats.trained_tokens) == (4, 7, 3 + 4 + 9)
    reader = SampleReader([tmp_path / "train-00000.arrow"])
    labels = [reader[index].labels.tolist() for index in range(3, 6)]
    assert labels == [[-100, 1, 2, 3], [-100, 4, 5, 6], [-100, 7, 8, 9]]


def test_rows_of_sources_are_mixed_among_what_fits(tmp_path: Path) -> None:
    rows = [good(line, [line] * length) | {"source": source} for line, length, source in MIXED_ROWS]
    examples = Examples(collect(tmp_path, table(*rows)).folder)

    def selected_by(strategy: MixtureStrategy) -> tuple[Selection, UnusedRows]:
        unused = UnusedRows()
        mixture = partial(mix, weights=[1, 2], strategy=strategy, seed=0)
        return select("train", examples, CONTEXT, "drop", unused, mixture), unused

    chosen, unused = selected_by("all_exhausted")
    assert pieces(chosen) == [(index, 0, 3) for index in (0, 1, 3, 3, 3, 3)]
    assert (chosen.num_rows, unused.counts) == (3, {TOO_LONG: 1})
    chosen, unused = selected_by("first_exhausted")
    assert [index for index, _, _ in pieces(chosen)] in ([0, 3], [1, 3])
    assert (chosen.num_rows, unused.counts) == (2, {TOO_LONG: 1, BEYOND_SHARE: 1})


@pytest.mark.parametrize("packing", [True, False])
def test_many_shards_read_as_one(packing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [good(line, [line] * (1 + line % CONTEXT)) for line in range(1, 40)]
    examples = Examples(collect(tmp_path, table(*rows)).folder)
    chosen = select("train", examples, CONTEXT, "drop", UnusedRows())
    readers, stats = [], []
    for name, tokens_per_shard in (("one", 1000), ("many", 2 * CONTEXT)):
        monkeypatch.setattr(selection, "TOKENS_PER_SHARD", tokens_per_shard)
        (folder := tmp_path / name).mkdir()
        stats.append(write_selection(chosen, packing, folder))
        readers.append(SampleReader(sorted(folder.iterdir())))
    assert len(list((tmp_path / "one").iterdir())) == 1
    assert len(list((tmp_path / "many").iterdir())) > 5
    assert stats[0] == stats[1]
    one, many = readers
    assert len(one) == len(many) == stats[0].samples
    assert all(np.array_equal(one[index].input_ids, many[index].input_ids) for index in range(len(one)))

"""Rows of a chosen and a rejected answer: both checked, tokenized as one row, packed together, and cut apart again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.config.data import DatasetConfig
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.collector import ExampleCollector, Examples
from llmforge.dataset.example import Example
from llmforge.dataset.job_sources import JobSource, with_format
from llmforge.dataset.pairs import WITHOUT_LOSS
from llmforge.dataset.preview import preview_rows
from llmforge.dataset.rows import parse_pair
from llmforge.dataset.selection import select, write_selection
from llmforge.dataset.shards import Sample, SampleReader
from llmforge.dataset.sources import plan_blocks
from llmforge.dataset.stage import BlockTokenizer, SourceBlock, StageSettings
from llmforge.dataset.tokenize import TokenizerText
from llmforge.dataset.unused import TOO_LONG, UnusedRows
from llmforge.errors import DataError

FORMAT = PromptFormat(
    bos="<s>", system="{instruction}\n", user="Q: {instruction}\n", assistant="A: {instruction}</s>",
    trailing_assistant="A:",
)  # fmt: skip
CONTEXT = 80
ROWS: list[dict[str, Any]] = [
    {"prompt": "Who was there?", "chosen": "A little girl was there.", "rejected": "Nobody"},
    {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Who are you?"},
        ],
        "chosen": "A bird",
        "rejected": "A bird that sings and sings and sings",
    },
    {"prompt": "Why?", "chosen": "Because", "rejected": "Because of the rain"},
    {"prompt": "When?", "chosen": "Now", "rejected": "One day " * 100},
]


@pytest.fixture
def job(tmp_path: Path, stories: Path) -> JobConfig:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return JobConfig.model_validate(
        {
            "model_id": str(stories),
            "train_path": str(tmp_path / "rows.jsonl"),
            "task": "preference_tuning",
            "preference_tuning_config": {},
            "dataset": {"format": "preference"},
            "generation_config": {"prompt_format": FORMAT.model_dump()},
        }
    )


@pytest.fixture
def tokenizer(stories: Path) -> TokenizerText:
    return TokenizerText((stories / "tokenizer.json").read_text(), "</s>")


@pytest.fixture
def examples(job: JobConfig, tokenizer: TokenizerText, tmp_path: Path) -> Examples:
    """What the stage makes of the rows."""
    settings = StageSettings(job.model_dump_json(), (job.dataset.model_dump_json(),), tokenizer, str(tmp_path), False)
    stage = BlockTokenizer(settings)
    (tmp_path / "examples").mkdir()
    with ExampleCollector(tmp_path / "examples") as collector:
        for block in plan_blocks(
            [str(job.train_path)], is_validation=False, block_bytes=1 << 20, cache_folder=tmp_path
        ):
            collector.add(stage.table(SourceBlock(0, block)))
    collected = collector.result()
    assert (collected.rows_in, collected.invalid) == (len(ROWS), [])
    assert collected.checks.prompts == 2 * len(ROWS)
    return Examples(collected.folder)


def written(examples: Examples, folder: Path, *, packing: bool) -> SampleReader:
    """Without the last row, which is longer than the context."""
    folder.mkdir(exist_ok=True)
    write_selection(select("train", examples, CONTEXT, "drop", UnusedRows()), packing, folder)
    return SampleReader([folder / "train-00000.arrow"])


def ids(one: Example | Sample) -> tuple[list[int], list[int]]:
    """Of all tokens and labels."""
    return one.input_ids.tolist(), one.labels.tolist()


def test_a_pair_is_two_conversations_of_which_the_last_answer_is_trained(
    job: JobConfig, tokenizer: TokenizerText, examples: Examples, tmp_path: Path
) -> None:
    """As the preview shows them, which renders and tokenizes one conversation after another."""
    reader = written(examples, tmp_path, packing=False)
    rows = list(preview_rows(job, tokenizer, tmp_path))
    assert len(reader) == len(ROWS) - 1
    for index, row in enumerate(rows[:-1]):
        (chosen_place, chosen), (rejected_place, rejected) = row.conversations
        assert (chosen_place, rejected_place) == (f"{row.place}, chosen", f"{row.place}, rejected")
        assert [ids(one) for one in reader[index].alone()] == [ids(chosen.example), ids(rejected.example)]
        assert [one.learnt[0].strip() for one in (chosen, rejected)] == [
            f"{ROWS[index][name]}</s>" for name in ("chosen", "rejected")
        ]
        assert chosen.prompt == rejected.prompt
    assert reader.loss_weights.tolist() == [1.0] * len(reader)


def test_pairs_stay_together_in_a_pack(examples: Examples, tmp_path: Path) -> None:
    """A sequence holds twice the context, since either conversation may be as long as that."""
    alone, packed = (written(examples, tmp_path / str(packing), packing=packing) for packing in (False, True))
    assert len(packed) < len(alone)
    assert CONTEXT < packed.num_tokens.max() <= 2 * CONTEXT
    pairs = [[ids(one) for one in alone[index].alone()] for index in range(len(alone))]
    found = [packed[index].alone() for index in range(len(packed))]
    in_packs = [[ids(one) for one in sample[at : at + 2]] for sample in found for at in range(0, len(sample), 2)]
    assert sorted(in_packs) == sorted(pairs)
    assert packed.loss_weights.tolist() == [len(sample) / 2 for sample in found]
    assert packed.num_trained_tokens.sum() == alone.num_trained_tokens.sum()


def test_the_longer_conversation_decides_what_fits(examples: Examples) -> None:
    lengths = examples.longest_members
    context = int(np.sort(lengths)[-2])
    unused = UnusedRows()
    chosen = select("train", examples, context, "drop", unused)
    assert (len(chosen.pieces), chosen.capacity) == (3, 2 * context)
    assert unused.counts == {TOO_LONG: 1}
    assert unused.rows[0].reason == f"{TOO_LONG} ({lengths[-1]} tokens > {context})"


def test_statistics_count_conversations(examples: Examples, tmp_path: Path) -> None:
    stats = write_selection(select("train", examples, CONTEXT, "drop", UnusedRows()), True, tmp_path)
    assert (stats.rows, stats.examples) == (3, 6)
    assert stats.packing_efficiency == stats.tokens / (2 * CONTEXT * stats.samples)


@pytest.mark.parametrize("key", [{"weight": 0.5}, {"train": False}])
def test_answers_that_are_compared_have_no_weight(key: dict[str, object]) -> None:
    answer = {"role": "assistant", "content": "a"} | key
    row = {"prompt": "hi", "chosen": [answer], "rejected": "b"}
    with pytest.raises(DataError, match="an answer has a `weight` or `train` of its own, which means nothing"):
        parse_pair(json.dumps(row).encode(), FORMAT, DatasetConfig(format="preference"))


def test_answers_that_differ_in_blanks_only_are_equal() -> None:
    """The prompt format strips them."""
    row = {"prompt": "hi", "chosen": "a", "rejected": " a\n"}
    with pytest.raises(DataError, match="the chosen and the rejected answer are equal"):
        parse_pair(json.dumps(row).encode(), FORMAT, DatasetConfig(format="preference"))


def test_an_answer_without_a_token_is_named(job: JobConfig, tokenizer: TokenizerText, tmp_path: Path) -> None:
    """Formats whose template is the bare content take empty ones."""
    bare = {"system": "{instruction}", "user": "{instruction}", "assistant": "{instruction}"}
    keys = job.model_dump(mode="json") | {"generation_config": {"prompt_format": bare}}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "hi", "chosen": "a", "rejected": ""}))
    (row,) = preview_rows(JobConfig.model_validate(keys), tokenizer, tmp_path)
    assert (row.conversations, row.problem) == ([], WITHOUT_LOSS)


def test_rows_without_two_answers_are_refused(tmp_path: Path) -> None:
    source = JobSource("a.jsonl", (), False, None, DatasetConfig(format="messages"))
    with pytest.raises(DataError, match="rows of the format messages, but task is preference_tuning, which"):
        with_format(source, "preference_tuning", tmp_path)

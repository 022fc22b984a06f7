"""Rows of single answers that are desirable or not: checked, tokenized, and each beside the answer of another row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmforge.config.data import DatasetConfig
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.collector import Collected, ExampleCollector, Examples
from llmforge.dataset.example import Example
from llmforge.dataset.job_sources import JobSource, with_format
from llmforge.dataset.mismatched import NONE, draw_partners
from llmforge.dataset.pairs import PAIR
from llmforge.dataset.preview import preview_rows
from llmforge.dataset.rated import WITHOUT_LOSS, warn_of_imbalance
from llmforge.dataset.row_encoder import RowEncoder, job_encoder
from llmforge.dataset.rows import parse_rated, parse_row
from llmforge.dataset.selection import Selection, select, write_selection
from llmforge.dataset.shards import Sample, SampleReader
from llmforge.dataset.sources import plan_blocks
from llmforge.dataset.stage import BlockTokenizer, SourceBlock, StageSettings
from llmforge.dataset.stats import DatasetStats, RatedStats
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.dataset.unused import DUPLICATE, UnusedRows
from llmforge.errors import DataError
from llmforge.prompt.messages import Conversation
from tests.dataset.test_stats import STATS, TRAIN

FORMAT = PromptFormat(
    bos="<s>", system="{instruction}\n", user="Q: {instruction}\n", assistant="A: {instruction}</s>\n",
    trailing_assistant="A:",
)  # fmt: skip
CONTEXT = 80
UNPAIRED = DatasetConfig(format="unpaired_preference")
ROWS: list[dict[str, Any]] = [
    {"prompt": "Who was there?", "completion": "A little girl was there.", "label": True},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "A bird that sings and sings and sings"},
        ],
        "label": False,
    },
    {"instruction": "Why?", "input": "It rains.", "output": "Because", "kto_tag": 1},
    {"conversations": [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "Now"}], "label": 0},
    {"prompt": "When?", "completion": "Now", "label": True},
]
LABELS = [True, False, True, False, True]


@pytest.fixture
def tokenizer(stories: Path) -> TokenizerText:
    return TokenizerText((stories / "tokenizer.json").read_text(), "</s>")


@dataclass(frozen=True)
class Stage:
    """The data stage on rows of one file."""

    stories: Path
    tokenizer: TokenizerText
    folder: Path

    def job(self, rows: Sequence[dict[str, Any]], row_format: str = "unpaired_preference", **dataset: Any) -> JobConfig:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return JobConfig.model_validate(
            {
                "model_id": str(self.stories),
                "train_path": str(self.folder / "rows.jsonl"),
                "task": "preference_tuning",
                "preference_tuning_config": {"loss": "kto"},
                "dataset": {"format": row_format, **dataset},
                "generation_config": {"prompt_format": FORMAT.model_dump()},
            }
        )

    def collected(self, job: JobConfig, block_bytes: int = 1 << 20) -> Collected:
        datasets = (job.dataset.model_dump_json(),)
        stage = BlockTokenizer(StageSettings(job.model_dump_json(), datasets, self.tokenizer, str(self.folder), False))
        folder = self.folder / f"examples-{block_bytes}"
        folder.mkdir()
        with ExampleCollector(folder) as collector:
            for block in plan_blocks(
                [str(job.train_path)], is_validation=False, block_bytes=block_bytes, cache_folder=self.folder
            ):
                collector.add(stage.table(SourceBlock(0, block)))
        return collector.result()

    def encoder(self, job: JobConfig) -> RowEncoder:
        return job_encoder(job, self.tokenizer.eos_token, SegmentTokenizer(self.tokenizer.json))


@pytest.fixture
def stage(stories: Path, tokenizer: TokenizerText, tmp_path: Path) -> Stage:
    return Stage(stories, tokenizer, tmp_path)


def chosen(collected: Collected, context: int = CONTEXT, seed: int = 0) -> Selection:
    return select("train", Examples(collected.folder), context, "drop", UnusedRows(), seed=seed)


def written(selection: Selection, folder: Path, *, packing: bool) -> SampleReader:
    folder.mkdir(exist_ok=True)
    write_selection(selection, packing, folder)
    return SampleReader([folder / "train-00000.arrow"])


def ids(one: Example | Sample) -> tuple[list[int], list[int]]:
    """Of all tokens and labels."""
    return one.input_ids.tolist(), one.labels.tolist()


def test_a_row_is_its_own_conversation_and_a_mismatched_one(stage: Stage, tmp_path: Path) -> None:
    """The first as the preview shows it; the second as if somebody had written that answer behind that prompt."""
    job = stage.job(ROWS)
    collected = stage.collected(job)
    assert (collected.rows_in, collected.invalid, collected.checks.prompts) == (5, [], 5)
    selection = chosen(collected)
    reader = written(selection, tmp_path / "out", packing=False)
    rows = [parse_row(json.dumps(row).encode(), FORMAT, UNPAIRED) for row in ROWS]
    encoder = stage.encoder(job)
    assert selection.partners is not None
    for index, row in enumerate(preview_rows(job, stage.tokenizer, tmp_path)):
        ((place, shown),) = row.conversations
        assert place == f"{row.place}, {'desirable' if LABELS[index] else 'undesirable'}"
        own, mismatched = reader[index].alone()
        assert ids(own) == ids(shown.example)
        prompt, other = rows[index], rows[selection.partners[index]]
        assert isinstance(prompt, Conversation) and isinstance(other, Conversation)
        spliced = Conversation((*prompt.messages[:-1], other.messages[-1]))
        assert ids(mismatched) == ids(encoder.encode([spliced]).examples[0])
        labels = reader[index].are_desirable
        assert labels is not None and labels.tolist() == [LABELS[index]] * 2
        assert reader.num_tokens[index] == len(own.input_ids)
        assert reader.num_trained_tokens[index] == own.num_trained_tokens
    assert reader.loss_weights.tolist() == [1.0] * 5


def test_mismatched_answers_are_those_of_other_prompts_and_differ(stage: Stage) -> None:
    """The last two rows have the same prompt and the same answer."""
    collected = stage.collected(stage.job(ROWS))
    for seed in range(20):
        partners = chosen(collected, seed=seed).partners
        assert partners is not None and NONE not in partners
        assert all(index != partner for index, partner in enumerate(partners))
        assert partners[3] != 4 and partners[4] != 3
    assert len({tuple(draw_partners(Examples(collected.folder), np.arange(5), CONTEXT, seed)) for seed in range(9)}) > 1


def test_blocks_and_packs_change_nothing(stage: Stage, tmp_path: Path) -> None:
    """So neither the number of devices nor of workers decides which answer meets which prompt."""
    job = stage.job(ROWS)
    whole, cut = (chosen(stage.collected(job, block_bytes)) for block_bytes in (1 << 20, 100))
    assert whole.partners is not None and cut.partners is not None
    assert whole.partners.tolist() == cut.partners.tolist()
    alone, packed = (written(whole, tmp_path / str(packing), packing=packing) for packing in (False, True))
    assert len(packed) < len(alone)
    units = [[ids(one) for one in alone[index].alone()] for index in range(5)]
    found = [packed[index].alone() for index in range(len(packed))]
    in_packs = [[ids(one) for one in sample[at : at + PAIR]] for sample in found for at in range(0, len(sample), PAIR)]
    assert sorted(in_packs) == sorted(units)
    assert packed.loss_weights.tolist() == [len(sample) / 2 for sample in found]
    assert packed.num_tokens.sum() == alone.num_tokens.sum()
    assert packed.num_trained_tokens.sum() == alone.num_trained_tokens.sum()


def test_what_does_not_fit_behind_a_prompt_is_not_taken(stage: Stage, tmp_path: Path) -> None:
    """The row stays, and a single token without loss stands where its mismatched conversation would."""
    collected = stage.collected(stage.job(ROWS))
    examples = Examples(collected.folder)
    context = int(examples.lengths.max())
    selection = chosen(collected, context)
    assert selection.partners is not None
    for index, partner in enumerate(selection.partners):
        length = examples.prompt_lengths[index] + examples.lengths[partner] - examples.prompt_lengths[partner]
        assert partner == NONE or length <= context
    lonely = chosen(stage.collected(stage.job(ROWS[:1]), 99))
    assert lonely.partners is not None and lonely.partners.tolist() == [NONE]
    assert lonely.rated == RatedStats(desirable=1, undesirable=0, without_mismatched=1)
    own, nothing = written(lonely, tmp_path / "out", packing=False)[0].alone()
    assert own.num_trained_tokens > 0
    assert (nothing.input_ids.tolist(), nothing.num_trained_tokens) == (own.input_ids[:1].tolist(), 0)


def test_pairs_are_two_rated_answers_each(stage: Stage) -> None:
    rows = [{"prompt": f"Who {n}?", "chosen": f"A bird {n}", "rejected": f"Nobody {n}"} for n in range(3)]
    job = stage.job(rows, "preference")
    collected = stage.collected(job)
    examples = Examples(collected.folder)
    assert collected.rows_in == 6
    assert examples.are_desirable is not None
    assert examples.are_desirable.tolist() == [True, False] * 3
    selection = chosen(collected)
    assert selection.rated == RatedStats(desirable=3, undesirable=3, without_mismatched=0)
    assert selection.partners is not None
    assert all(index // 2 != partner // 2 for index, partner in enumerate(selection.partners))
    (first, *_) = preview_rows(job, stage.tokenizer, stage.folder)
    assert [place.split(", ")[1] for place, _ in first.conversations] == ["chosen", "rejected"]


def test_a_duplicate_has_the_same_label(stage: Stage) -> None:
    rows = [{"prompt": "When?", "completion": "Now", "label": label} for label in (True, False, True)]
    collected = stage.collected(stage.job(rows, deduplicate=True))
    assert (collected.rows_in, collected.unused.counts) == (3, {DUPLICATE: 1})


def test_an_answer_without_a_token_is_named(stage: Stage, tmp_path: Path) -> None:
    """Formats whose template is the bare content take empty ones."""
    bare = {"system": "{instruction}", "user": "{instruction}", "assistant": "{instruction}"}
    job = stage.job([{"prompt": "hi", "completion": "", "label": True}])
    keys = job.model_dump(mode="json") | {"generation_config": {"prompt_format": bare}}
    (row,) = preview_rows(JobConfig.model_validate(keys), stage.tokenizer, tmp_path)
    assert (row.conversations, row.problem) == ([], WITHOUT_LOSS)


PROMPT = {"role": "user", "content": "hi"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"prompt": "hi", "completion": "yo"},
        "no `label` (or `kto_tag`) column (found: completion, prompt); rows of the ",
    ),
    ({"prompt": "hi", "completion": "yo", "label": "good"}, "`label` is a text; expected true for a desirable answer"),
    ({"prompt": "hi", "completion": "yo", "label": 2}, "`label` is 2; expected true for a desirable answer, or false "),
    ({"prompt": "hi", "label": True}, "no conversation (found: label, prompt); rows of the format unpaired_preference"),
    ({"messages": [PROMPT], "label": True}, "the last message is the user's; a training row ends with the assistant's"),
    (
        {"messages": [PROMPT, {"role": "assistant", "content": "a", "weight": 0.5}], "label": True},
        "an answer has a `weight` or `train` of its own, which means nothing in a comparison; remove it",
    ),
    ({"prompt": "hi", "completion": "", "label": True}, "empty"),
    ({"prompt": "hi", "completion": "yo", "label": True, "tools": [{}]}, "the row has `tools`"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_what_is_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as error:
        parse_rated(json.dumps(row).encode(), FORMAT, UNPAIRED)
    assert reason in str(error.value)


def test_columns_with_other_names() -> None:
    columns = {"prompt": "question", "completion": "reply", "label": "liked"}
    dataset = DatasetConfig.model_validate({"format": "unpaired_preference", "columns": columns})
    row = {"question": "hi", "reply": "yo", "liked": False, "label": True}
    (answer,) = parse_rated(json.dumps(row).encode(), FORMAT, dataset)
    assert not answer.is_desirable
    assert [message.content for message in answer.conversation.messages] == ["hi", "yo"]


def source(row_format: str) -> JobSource:
    return JobSource("a.jsonl", (), False, None, DatasetConfig.model_validate({"format": row_format}))


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows of the format messages, but preference_tuning_config"):
        with_format(source("messages"), "preference_tuning", tmp_path, rated=True)


@pytest.mark.parametrize("task", ["instruction_tuning", "preference_tuning"])
def test_labels_are_refused_where_they_have_no_effect(task: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"rows of the format unpaired_preference, but task is {task}, which"):
        with_format(source("unpaired_preference"), task, tmp_path)


def stats_of(desirable: int, undesirable: int) -> DatasetStats:
    rated = RatedStats(desirable=desirable, undesirable=undesirable, without_mismatched=0)
    return STATS.model_copy(update={"train": TRAIN.model_copy(update={"rated": rated})})


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "expected"),
    [
        (100, 100, {}, None),
        (120, 90, {}, None),  # exactly 4/3
        (100, 200, {"undesirable_weight": 0.5}, None),
        (100, 200, {}, "weigh 0.5 times as much as 200 undesirable ones, where 1 to 4/3 is advised"),
        (100, 200, {}, "desirable_weight to 2 to 2.67, or undesirable_weight to 0.375 to 0.5"),
        (300, 100, {}, "desirable_weight to 0.333 to 0.444, or undesirable_weight to 2.25 to 3"),
        (100, 0, {}, "all answers are desirable: the model learns only to make answers likelier"),
    ],
)
def test_a_kind_that_outweighs_the_other_is_told(
    desirable: int,
    undesirable: int,
    weights: dict[str, float],
    expected: str | None,
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = stage.job(ROWS)
    config = {"preference_tuning_config": {"loss": "kto", **weights}}
    warn_of_imbalance(JobConfig.model_validate(job.model_dump(mode="json") | config), stats_of(desirable, undesirable))
    assert (expected in caplog.text) if expected else not caplog.text


def test_what_is_told_of_rated_rows() -> None:
    lines = stats_of(60, 35).describe().splitlines()
    assert lines[1].startswith("train: 45 answers (60 desirable, 35 undesirable) in 10 sequences, 4000 tokens")

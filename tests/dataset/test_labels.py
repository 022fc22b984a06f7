"""Labels in the data: the token of each, rows that have none, and what is trained of a row."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llmforge.config.data import DatasetConfig
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.training import ClassifierConfig
from llmforge.dataset.job_sources import JobSource, with_format
from llmforge.dataset.labels import NO_LABEL, check_label_counts, find_label_tokens
from llmforge.dataset.preview import preview_rows
from llmforge.dataset.sources import plan_blocks
from llmforge.dataset.stage import BlockTokenizer, SourceBlock, StageSettings
from llmforge.dataset.stats import CheckTotals, DatasetStats, LengthSummary, SplitStats
from llmforge.dataset.tokenize import TokenizerText
from llmforge.errors import ConfigError, DataError
from tests.prompt.formats import LLAMA_2, LLAMA_3, VERBATIM
from tests.prompt.tokenizers import hugging_face_tokenizer, segment_tokenizer, tokenizer_json

OF_GUARD = VERBATIM.model_copy(update={"parse_special_in_content": True})
STORY = PromptFormat(
    bos="<s>", system="{instruction}\n", user="Q: {instruction}\n", assistant="A: {instruction}</s>",
    trailing_assistant="A:",
)  # fmt: skip


def vocabulary(folder: Path) -> dict[str, int]:
    """The words of a tokenizer and their ids, as its file has them."""
    words: dict[str, int] = json.loads(tokenizer_json(folder))["model"]["vocab"]
    return words


def test_a_label_is_the_token_that_stands_behind_the_prompt(material: Path) -> None:
    llama_3, llama_2 = material / "tokenizers" / "llama3-hf", material / "tokenizers" / "llama2-hf"
    labels = ("safe", "unsafe")
    words = vocabulary(llama_3)
    for prompt_format in (LLAMA_3, OF_GUARD):
        found = find_label_tokens(labels, prompt_format, segment_tokenizer(llama_3))
        assert found == (words["safe"], words["unsafe"])
    words = vocabulary(llama_2)
    found = find_label_tokens(labels, LLAMA_2, segment_tokenizer(llama_2))
    assert found == (words["\u2581safe"], words["\u2581unsafe"])
    reserved = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    assert find_label_tokens(reserved, LLAMA_3, segment_tokenizer(llama_3)) == (128002, 128003)


def test_a_label_that_is_not_one_token_of_its_own_is_refused(material: Path) -> None:
    tokenizer = segment_tokenizer(material / "tokenizers" / "llama3-hf")
    with pytest.raises(ConfigError) as refused:
        find_label_tokens(("harmless", "very harmful"), LLAMA_3, tokenizer)
    message = str(refused.value)
    assert "found 'very harmful', which is 2 tokens behind a prompt (very, Ġharmful), allowed is one" in message
    assert "choose another text" in message
    spoken = LLAMA_3.model_copy(
        update={"assistant": "<|start_header_id|>assistant<|end_header_id|>\n\nIt is: {instruction}<|eot_id|>"}
    )
    with pytest.raises(ConfigError, match=r"writes 'It is: ' before the answer.*trailing_assistant"):
        find_label_tokens(("safe", "unsafe"), spoken, tokenizer)
    cued = spoken.model_copy(update={"trailing_assistant": spoken.assistant.partition(" {instruction}")[0]})
    words = vocabulary(material / "tokenizers" / "llama3-hf")
    assert find_label_tokens(("safe", "unsafe"), cued, tokenizer) == (words["Ġsafe"], words["Ġunsafe"])


@pytest.fixture
def job(tmp_path: Path, stories: Path) -> JobConfig:
    """Labels that are words of the tiny model's vocabulary."""
    return JobConfig.model_validate(
        {
            "model_id": str(stories),
            "train_path": str(tmp_path / "rows.jsonl"),
            "task": "classification",
            "classifier_config": {"label_tokens": ["happy", "big"], "positive_label": "big"},
            "generation_config": {"prompt_format": STORY.model_dump()},
        }
    )


def write(job: JobConfig, *rows: object) -> None:
    Path(str(job.train_path)).write_text("".join(json.dumps(row) + "\n" for row in rows))


def conversation(*contents: str, **answer: object) -> dict[str, object]:
    messages: list[dict[str, object]] = [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)
    ]
    messages[-1] |= answer
    return {"messages": messages}


def test_only_the_label_is_trained_and_nothing_stands_behind_it(job: JobConfig, stories: Path, tmp_path: Path) -> None:
    reference = hugging_face_tokenizer(stories)
    write(
        job,
        conversation("Lily smiles", " happy\n"),
        conversation("A bird", "happy", "An elephant", "big", weight=2),
        conversation("A bird", "tiny"),
        {"instruction": "An elephant", "output": "big"},
    )
    rows = list(preview_rows(job, TokenizerText(tokenizer_json(stories)), tmp_path))
    assert [row.problem for row in rows[:2]] == [None, None]
    assert rows[2].problem == "the last answer is 'tiny', allowed by classifier_config: 'happy', 'big'"
    texts = ["<s>Q: Lily smiles\nA: happy", "<s>Q: A bird\nA: happy</s>Q: An elephant\nA: big"]
    for row, text, label in zip(rows[:2], texts, ("happy", "big"), strict=True):
        assert row.encoded is not None
        assert row.encoded.text == text
        ids = row.encoded.example.input_ids.tolist()
        assert ids[-1] == reference.convert_tokens_to_ids(f"\u2581{label}")
        assert row.encoded.prompt.input_ids == ids[:-1]
        assert row.encoded.example.labels.tolist() == [-100] * (len(ids) - 1) + ids[-1:]
    assert rows[1].encoded is not None and rows[1].encoded.example.weights is not None
    assert rows[1].encoded.example.weights[-1] == 2


def test_the_stage_marks_rows_without_a_label(job: JobConfig, stories: Path, tmp_path: Path) -> None:
    write(job, conversation("Lily smiles", "happy"), conversation("A bird", "sings"))
    part = SourceBlock(
        0, plan_blocks([str(job.train_path)], is_validation=False, block_bytes=1 << 20, cache_folder=tmp_path)[0]
    )
    dataset = DatasetConfig(format="messages").model_dump_json()
    text = TokenizerText(tokenizer_json(stories))
    tokenizer = BlockTokenizer(StageSettings(job.model_dump_json(), (dataset,), text, str(tmp_path), is_fast=True))
    problems = tokenizer.table(part)["reason"].to_pylist()
    assert problems == [None, "the last answer is 'sings', allowed by classifier_config: 'happy', 'big'"]


def test_a_control_token_in_a_message_stays_text_beside_a_label_that_is_one(
    job: JobConfig, stories: Path, tmp_path: Path
) -> None:
    config = ClassifierConfig(label_tokens=("<unk>", "</s>"), positive_label="</s>")
    cued = STORY.model_copy(update={"assistant": "A:{instruction}"})
    assert job.generation_config is not None
    generation = job.generation_config.model_copy(update={"prompt_format": cued})
    job = job.model_copy(update={"classifier_config": config, "generation_config": generation})
    write(job, conversation("Is </s> an end?", "</s>"))
    (row,) = preview_rows(job, TokenizerText(tokenizer_json(stories)), tmp_path)
    assert row.encoded is not None
    end = hugging_face_tokenizer(stories).convert_tokens_to_ids("</s>")
    ids = row.encoded.example.input_ids.tolist()
    assert ids[-1] == end and ids.count(end) == 1


def test_a_row_whose_prompt_changes_the_token_of_its_label_is_refused(
    job: JobConfig, stories: Path, tmp_path: Path
) -> None:
    """Behind a control token this tokenizer puts a space of its own before a word."""
    assert job.generation_config is not None
    generation = job.generation_config.model_copy(update={"prompt_format": OF_GUARD})
    config = ClassifierConfig(label_tokens=("a", "b"), positive_label="b")
    job = job.model_copy(update={"classifier_config": config, "generation_config": generation})
    write(job, conversation("<s>is it", "a"), conversation("<s>is it</s>", "a"))
    rows = list(preview_rows(job, TokenizerText(tokenizer_json(stories)), tmp_path))
    assert [row.problem for row in rows] == [None, NO_LABEL]


@pytest.mark.parametrize("row_format", ["text", "segments"])
def test_rows_without_an_answer_are_refused(row_format: str) -> None:
    dataset = DatasetConfig.model_validate({"format": row_format})
    with pytest.raises(DataError, match=rf"a.jsonl: rows of the format {row_format}, but task is classification"):
        with_format(JobSource("a.jsonl", (), False, None, dataset), "classification", Path())


def stats(train: dict[str, int], valid: dict[str, int]) -> DatasetStats:
    def split(labels: dict[str, int]) -> SplitStats:
        return SplitStats(
            rows=1, examples=1, samples=1, tokens=10, trained_tokens=1, packing_efficiency=1.0, longest_sample=10,
            most_trained=1, labels=labels,
        )  # fmt: skip

    return DatasetStats(
        rows_in=1, rows_used=1, dropped={}, checks=CheckTotals(rows=1, prompts=1, straddled=0, ends_with_terminator=0),
        context_length=8, lengths=LengthSummary(shortest=1, median=1, p95=1, longest=1), length_histogram=(),
        train=split(train), valid=split(valid),
    )  # fmt: skip


def test_labels_are_counted_and_missing_ones_told(caplog: pytest.LogCaptureFixture) -> None:
    found = stats({"a": 5, "b": 0}, {"a": 0, "b": 2})
    assert "train: labels: 5 a, 0 b" in found.describe()
    assert "control token" not in found.describe()
    config = ClassifierConfig(label_tokens=("a", "b"), positive_label="a")
    with caplog.at_level(logging.WARNING):
        check_label_counts(config, found)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "no training row has the label b", "no validation row has the label a",
    ]  # fmt: skip
    with pytest.raises(DataError, match="best_by: found prauc, which is not defined where no validation row has"):
        check_label_counts(config.model_copy(update={"best_by": "prauc"}), found)

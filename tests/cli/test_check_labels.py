"""Labels are looked at before anything starts."""

from __future__ import annotations

from pathlib import Path

from llmforge.cli.check_labels import find_label_problems
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from tests.prompt.formats import PLAIN


def job(model: Path, *labels: str) -> JobConfig:
    return JobConfig.model_validate(
        {"model_id": str(model), "train_path": "rows.jsonl", "classifier_config": {"label_tokens": labels}}
    )


def test_labels_of_several_tokens_are_told_with_their_key(stories: Path, tmp_path: Path) -> None:
    spaced = PLAIN.model_copy(update={"assistant": "### Response:\n {instruction}\n\n"})
    (found,) = find_label_problems(job(stories, "a", "unsafe"), spaced)
    assert found == Finding(("classifier_config", "label_tokens"), found.message)
    assert "found 'unsafe', which is 6 tokens behind a prompt" in found.message
    assert found.message.endswith(
        "or move ' ' into generation_config.prompt_format.trailing_assistant, and it is added"
    )
    assert list(find_label_problems(job(stories, "a", "unsafe"), PLAIN)) == []  # added to the tokenizer
    assert list(find_label_problems(job(stories, "a", "b"), PLAIN)) == []
    assert list(find_label_problems(job(stories, "a", "unsafe"), None)) == []  # a format that is not known yet
    assert list(find_label_problems(job(tmp_path, "a", "unsafe"), PLAIN)) == []  # a model of the hub

"""Labels that are no token yet, in the model and the tokenizer of a job: at its start, and where it goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.labels import labelled_tokenizer, new_classifier, tokenizer_with_labels
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.models.folder import read_tokenizer_json
from llmforge.train.model import build_model, build_tokenizer, read_job_tokenizer

FORMAT = PromptFormat(
    bos="<s>", system="{instruction}\n", user="Q: {instruction}\n", assistant="A:{instruction}</s>",
    trailing_assistant="A:",
)  # fmt: skip


def make_job(stories: Path, **keys: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "model_id": str(stories),
            "train_path": "rows.jsonl",
            "task": "classification",
            "precision": "fp32",
            "classifier_config": {"label_tokens": ["[[2]]", "[[1]]"], "positive_label": "[[1]]"},
            "generation_config": {"prompt_format": FORMAT.model_dump()},
            **keys,
        }
    )


def test_the_tokenizer_of_a_checkpoint_has_the_labels(stories: Path, tmp_path: Path) -> None:
    job = make_job(stories)
    build_tokenizer(job).save_pretrained(tmp_path)
    saved, own = read_tokenizer_json(tmp_path), read_job_tokenizer(job)
    assert labelled_tokenizer(job.labels, FORMAT, saved) == saved
    for text in (saved, own):
        assert new_classifier(job, SegmentTokenizer(text)).token_ids == (512, 513)
    others = AutoTokenizer.from_pretrained(tmp_path)
    assert others("A:[[1]]", add_special_tokens=False).input_ids[-1] == 513


def test_all_weights_go_on_with_their_new_rows(stories: Path, tmp_path: Path) -> None:
    job = make_job(stories)
    torch.manual_seed(job.seed)
    model, folder = build_model(job, None, tmp_path), tmp_path / "step"
    assert model.config.vocab_size == 514
    with torch.no_grad():
        model.get_output_embeddings().weight[512:] += 1
    model.save_pretrained(folder)
    resumed = build_model(job, folder, tmp_path)
    assert resumed.config.vocab_size == 514
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in resumed.state_dict().items())


def test_ranks_start_equal(stories: Path, tmp_path: Path) -> None:
    job = make_job(stories, lora_config={"target_modules": ["q_proj"]})
    ranks = []
    for _ in range(2):
        torch.manual_seed(job.seed)
        ranks.append(build_model(job, None, tmp_path).state_dict())
    assert all(torch.equal(ranks[0][name], weight) for name, weight in ranks[1].items())
    assert sum("trainable_tokens_delta" in name for name in ranks[0]) == 1


def test_what_is_added_is_said(stories: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer_with_labels(make_job(stories), read_tokenizer_json(stories))
    assert "'[[2]]', '[[1]]' are no tokens of this tokenizer and are added to it" in caplog.text

"""A job resolved without a cluster and without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.cli.local_job import resolve_locally
from llmforge.config.families import find_family
from llmforge.config.job import JobConfig
from llmforge.errors import ConfigError, ModelError
from llmforge.prompt.chat_template import chat_template
from tests.checkpoint.run_folders import job as trained_job
from tests.checkpoint.run_folders import save_run
from tests.prompt.formats import CHATML, LLAMA_3, SPECIAL_TOKENS
from tests.prompt.tokenizers import byte_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model of no known family, without weights and without a chat template."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 90, "hidden_size": 8}')
    (folder / "tokenizer.json").write_text(byte_tokenizer(SPECIAL_TOKENS).to_str())
    return folder


def _job(model: Path, **keys: object) -> JobConfig:
    rows = model.parent / "rows.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    return JobConfig.model_validate({"model_id": str(model), "train_path": str(rows), **keys})


def test_the_model_says_what_the_job_does_not(model: Path) -> None:
    job = _job(model, generation_config={"prompt_format": CHATML.model_dump()})
    local = resolve_locally(job)
    assert local.job.prompt_format == CHATML
    assert local.job.task == "instruction_tuning"
    assert (local.model.facts.context_length, local.model.facts.num_parameters) == (90, None)
    assert local.special_tokens == SPECIAL_TOKENS


def test_the_format_of_a_known_family(model: Path) -> None:
    family = find_family("model-chatml")
    assert family is not None
    known = model.rename(model.parent / "model-chatml")
    assert resolve_locally(_job(known)).job.prompt_format == family.prompt_format


def test_the_format_of_the_tokenizer(model: Path) -> None:
    template = chat_template(LLAMA_3, SPECIAL_TOKENS)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert resolve_locally(_job(model)).job.prompt_format == LLAMA_3


def test_the_format_of_the_run_that_it_starts_from(model: Path, tmp_path: Path) -> None:
    """Also while that one is trained: its format stands."""
    save_run(trained_job(tmp_path, model_id=str(model), run_name="sft", format=LLAMA_3), [], outcome=None)
    job = _job(model, output_dir=str(tmp_path), initial_base_model_ckpt_path="run:sft")
    assert resolve_locally(job).job.prompt_format == LLAMA_3


def test_no_format_and_no_such_folder(model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model_id: no prompt format is known for '.*mine', and its tokenizer has no"
    ):
        resolve_locally(_job(model))
    with pytest.raises(ModelError, match="no such model folder"):
        resolve_locally(_job(model).model_copy(update={"model_id": "/no/such/model"}))

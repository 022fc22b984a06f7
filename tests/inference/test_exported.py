"""The record of an exported folder, and loading from such a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmforge.answers.sampling import Sampling
from llmforge.checkpoint.exported import EXPORT_RECORD, ExportRecord, read_export_record, write_export_record
from llmforge.checkpoint.find import find_checkpoint
from llmforge.errors import CheckpointError
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import open_generator
from llmforge.inference.load import load_trained_model, read_prompt_maker
from llmforge.models.load import load_base_model
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import folder_records
from tests.inference.runs import MODEL_FILES, make_run


@pytest.fixture
def run(material: Path, tmp_path: Path) -> Path:
    """A run of a small model that is all weights."""
    return make_run(material / "models" / "stories260K-hf", tmp_path)


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    """A folder as an export leaves it, without the run beside it."""
    source = find_trained_model(str(run), "best", tmp_path / "cache")
    folder = tmp_path / "exported"
    folder.mkdir()
    for file in MODEL_FILES:
        shutil.copyfile(source.fetch() / file, folder / file)
    record = ExportRecord.of(source.job, source.checkpoint, folder_records(folder))
    write_export_record(open_storage(str(folder)), record)
    return folder


def test_a_record_comes_back(run: Path, exported: Path, tmp_path: Path) -> None:
    record = read_export_record(open_storage(str(exported)))
    assert record is not None
    source = find_trained_model(str(run), "best", tmp_path / "cache")
    assert record.job == source.job
    assert (record.info.name, record.info.step) == ("step-00000010-a", 10)
    assert record.info.committed_at == source.checkpoint.committed_at
    assert {file.path for file in record.info.files} == set(MODEL_FILES)
    assert set(json.loads((exported / EXPORT_RECORD).read_text())) == {"version", "resolved_job", "checkpoint", "files"}
    assert read_export_record(open_storage(str(run))) is None


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "[]"])
def test_a_record_of_something_else(exported: Path, tmp_path: Path, text: str) -> None:
    (exported / EXPORT_RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{EXPORT_RECORD}: not the record of an export of version 1: "):
        find_trained_model(str(exported), "best", tmp_path / "cache")


def test_prompts_need_no_weights(run: Path, exported: Path, tmp_path: Path) -> None:
    """They are the same from the run and from its export."""
    (exported / "model.safetensors").unlink()
    makers = [read_prompt_maker(find_trained_model(str(uri), "best", tmp_path / "cache")) for uri in (run, exported)]
    conversations = [maker.parse([{"role": "user", "content": "Once <s>"}]) for maker in makers]
    ids = [maker.prompt_ids(conversation) for maker, conversation in zip(makers, conversations, strict=True)]
    assert ids[0] == ids[1]
    assert [maker.render(conversations[0]) for maker in makers] == ["<s>Once <s>"] * 2
    assert [maker.context_length for maker in makers] == [512, 512]


def test_a_source_leads_to_the_same_model_for_ever(run: Path, tmp_path: Path) -> None:
    source = find_trained_model(f"file://{run}", "latest", tmp_path / "cache")
    assert source.uri == f"{run}/checkpoints/step-00000010-a"
    assert find_checkpoint(source.uri, "best")[1] == source.checkpoint


@pytest.mark.slow
def test_an_export_answers_as_the_run_does(run: Path, exported: Path, tmp_path: Path) -> None:
    answers = []
    for uri in (str(run), str(exported), f"file://{exported}/"):
        generator = open_generator(find_trained_model(uri, "best", tmp_path / "cache"))
        conversation = generator.parse([{"role": "user", "content": "Once upon a time"}])
        answers.append(generator.answer(conversation, Sampling(max_tokens=12)))
    assert len(answers[0]) > 20
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.slow
def test_an_export_is_loaded_in_the_precision_of_its_weights(run: Path, exported: Path, tmp_path: Path) -> None:
    model = load_base_model(exported, exported, precision="bf16")
    (exported / EXPORT_RECORD).unlink()
    model.save_pretrained(exported)
    source = find_trained_model(str(run), "best", tmp_path / "cache")
    record = ExportRecord.of(source.job, source.checkpoint, folder_records(exported))
    write_export_record(open_storage(str(exported)), record)
    loaded = load_trained_model(find_trained_model(str(exported), "best", tmp_path / "cache"))
    assert loaded.model.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_damaged_export_is_named(exported: Path, tmp_path: Path) -> None:
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (exported / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_trained_model(find_trained_model(str(exported), "best", tmp_path / "cache"))
    assert "model.safetensors: " in str(caught.value)
    assert "tokenizer.json: missing" in str(caught.value)
    assert str(caught.value).startswith(f"damaged export: {exported}: 2 of 5 files are not what was written:")
    assert str(caught.value).endswith("(export the run again)")

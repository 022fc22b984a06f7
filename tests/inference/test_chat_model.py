"""`llmforge.load`: what a Python program gets of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llmforge
from llmforge.checkpoint.exported import ExportRecord, write_export_record
from llmforge.errors import CheckpointError, ConfigError, DataError
from llmforge.inference.chat_model import ChatModel
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import upload_files
from tests.inference.runs import commit, copied, generated_by, make_job, make_run, reference, spelled
from tests.s3_server import S3Server

ASK = [{"role": "user", "content": "Once upon a time"}]
OTHERS = [[{"role": "user", "content": text}] for text in ("Lily", "The big red dog saw", 'Tom said, "I am')]


@pytest.fixture(scope="module")
def run(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(material / "models" / "stories260K-hf", tmp_path_factory.mktemp("chat-model"))


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    torch.set_num_threads(1)
    return llmforge.load(run, cache_folder=tmp_path_factory.mktemp("cache"))


def test_importing_llmforge_brings_no_torch() -> None:
    program = "import sys, llmforge; llmforge.load; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_an_answer_in_every_way(model: ChatModel, run: Path) -> None:
    prompt = model.render([{"role": "system", "content": "A story."}, *ASK])
    assert prompt == "<s>A story. Once upon a time"
    alone = reference(model.job.model_id)
    tokenizer = model._generator.trained.decoder
    expected = generated_by(alone, tokenizer.encode("<s>Once upon a time", add_special_tokens=False), 40)
    text = spelled(expected, tokenizer).removeprefix(" ")
    assert model.generate(ASK) == text
    assert "".join(model.stream(ASK)) == text
    assert model.generate_batch([*OTHERS, ASK, *OTHERS])[3] == text
    assert model.generate(ASK, stop=".") == text.split(".")[0]
    assert model.generate(ASK, stop=["never", "."], max_tokens=None) == text.split(".")[0]
    assert model.generate_batch([]) == []


@pytest.mark.slow
def test_a_seed_makes_answers_reproducible(model: ChatModel) -> None:
    hot: dict[str, Any] = {"temperature": 1.0, "max_tokens": 15}
    batch = model.generate_batch([ASK, ASK, *OTHERS], seed=5, **hot)
    assert batch[0] == model.generate(ASK, seed=5, **hot) == "".join(model.stream(ASK, seed=5, **hot))
    assert batch[0] != batch[1]
    assert batch == model.generate_batch([ASK, ASK, *OTHERS], seed=5, batch_size=2, **hot)
    assert len({model.generate(ASK, seed=seed, **hot) for seed in range(8)}) > 4
    assert len({model.generate(ASK, **hot) for _ in range(8)}) > 1


@pytest.mark.slow
def test_what_cannot_be_answered_is_named(model: ChatModel) -> None:
    with pytest.raises(DataError, match=r"^message 1 has role 'bot'; allowed are system, user, assistant$"):
        model.generate([{"role": "bot", "content": "hi"}])
    with pytest.raises(DataError) as caught:
        model.generate_batch([ASK, [], OTHERS[0], [{"role": "user", "content": "a " * 600}]])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["conversation 2", "conversation 4"]
    assert "the model takes at most 511" in lines[1]
    with pytest.raises(ConfigError) as caught_config:
        model.generate(ASK, max_new_tokens=5)  # type: ignore[call-arg]
    found = "sampling: found max_new_tokens, which is none of its settings (did you mean max_tokens?)"
    assert str(caught_config.value) == found
    with pytest.raises(ConfigError, match="batch_size: found 0, allowed is a number from 1, or None"):
        model.generate_batch([ASK], batch_size=0)


@pytest.mark.slow
def test_closing_a_stream_stops_the_model(model: ChatModel) -> None:
    stream = model.stream(ASK, max_tokens=400)
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint; expected the folder of a run"):
        llmforge.load(tmp_path / "no", cache_folder=tmp_path)


@pytest.mark.slow
def test_from_s3(material: Path, model: ChatModel, s3_environment: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    """A run, a checkpoint of it, and an export."""
    run, exported = f"s3://{s3_bucket}/runs/story", f"s3://{s3_bucket}/exports/story"
    weights = copied(material / "models" / "stories260K-hf", tmp_path / "weights")
    info = commit(run, "step-00000010-a", weights, make_job(material / "models" / "stories260K-hf"))
    storage = open_storage(exported)
    records = upload_files(storage, "", weights)
    write_export_record(storage, ExportRecord.of(model.job, info, records))
    expected = model.generate(ASK, max_tokens=8)
    for uri in (run, f"{run}/checkpoints/step-00000010-a", exported, f"{exported}/"):
        assert llmforge.load(uri, cache_folder=tmp_path / "cache").generate(ASK, max_tokens=8) == expected
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"checkpoints", "exports"}

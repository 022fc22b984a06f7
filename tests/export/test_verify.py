"""`verify` on runs of a real model: everybody makes the same ids, and where somebody does not, it is found."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmforge.cli.main import app
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.prepared import commit_prepared
from llmforge.dataset.row_encoder import job_encoder
from llmforge.dataset.shards import SampleBatch, shard_name, write_shard
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ModelError
from llmforge.export.comparison import Verification
from llmforge.export.folder import ExportRequest, export_run
from llmforge.export.prompts import ProofRow, ProofRows, proof_rows
from llmforge.export.stored import stored_examples
from llmforge.export.tokenizer import save_tokenizer, served_tokenizer
from llmforge.export.verify import fetch_tokenizer, verify
from llmforge.inference.find import find_trained_model
from llmforge.prompt.messages import parse_conversation
from llmforge.storage.base import open_storage
from tests.export.test_card import STATS
from tests.export.trained_runs import CHECKPOINT, TrainedRun, commit, full_run, make_job, rows
from tests.inference.runs import STORY
from tests.prompt.formats import CHATML, LLAMA_2, LLAMA_3, MISTRAL_BOS, PLAIN

pytestmark = pytest.mark.slow
SPELLED = {"messages": [{"role": "user", "content": "Say </s> now"}, {"role": "assistant", "content": "ok"}]}


def verified(run: TrainedRun | Path, cache: Path) -> Verification:
    source = find_trained_model(str(run if isinstance(run, Path) else run.uri), "best", cache)
    stored = stored_examples(source.uri, source.job, source.checkpoint, cache)
    return verify(fetch_tokenizer(source, cache), source.job, proof_rows(source.job, 10, cache), stored)


def counts(verification: Verification) -> dict[str, tuple[int, int, int, int]]:
    return {
        tally.way: (tally.num_equal, tally.num_different, tally.num_control_text, tally.num_skipped)
        for tally in verification.tallies
    }


def prepare(run: TrainedRun, written: list[dict[str, Any]]) -> TrainedRun:
    """The same run with a prepared dataset beside it that holds these rows, all of them in one pack."""
    encoder = job_encoder(run.job, "</s>", SegmentTokenizer((Path(run.job.model_id) / "tokenizer.json").read_text()))
    examples = encoder.encode([parse_conversation(row["messages"], run.job.prompt_format) for row in written]).examples
    folder = run.uri.parent / "shards"
    folder.mkdir()
    for split in ("train", "valid"):
        write_shard(folder / shard_name(split), [SampleBatch(examples, np.array([len(written)]))])
    commit_prepared(open_storage(str(run.uri.parent)), "0123", folder, STATS.model_copy(update={"valid": STATS.train}))
    uri = run.uri.parent / "prepared"
    commit(uri, run.uri.parents[1] / "weights", run.job, data="data/0123")
    return TrainedRun(uri, run.job, uri / "checkpoints" / CHECKPOINT)


def test_a_run_is_equal_everywhere(stories: Path, tmp_path: Path) -> None:
    run = prepare(full_run(stories, tmp_path / "run"), rows(3))
    found = verified(run, tmp_path / "cache")
    assert counts(found) == dict.fromkeys(("chat template", "server", "prepared data"), (3, 0, 0, 0))
    assert (found.is_equal, found.findings) == (True, ())


def test_an_export_is_verified_too(stories: Path, tmp_path: Path) -> None:
    run = full_run(stories, tmp_path / "run")
    export_run(ExportRequest(str(run.uri), str(tmp_path / "out")), tmp_path / "cache")
    assert counts(verified(tmp_path / "out", tmp_path / "cache"))["server"] == (3, 0, 0, 0)


def test_data_that_have_changed_since(stories: Path, tmp_path: Path) -> None:
    other = rows(3)
    other[1]["messages"][1]["content"] = "there was a cat."
    run = prepare(full_run(stories, tmp_path / "run"), other)
    found = verified(run, tmp_path / "cache")
    assert counts(found)["prepared data"] == (2, 1, 0, 0)
    [finding] = found.findings
    assert (finding.place, finding.way) == (f"{tmp_path}/run/valid.jsonl:2", "prepared data")
    assert finding.ours is not None and finding.theirs is not None
    assert finding.ours.before == finding.theirs.before
    assert finding.ours.token != finding.theirs.token


def test_data_written_after_they_were_prepared(stories: Path, tmp_path: Path) -> None:
    """What was trained on is not what the file says now; that is no fault of anybody's rendering."""
    other = rows(3)
    other[1]["messages"][1]["content"] = "there was a cat."
    run = prepare(full_run(stories, tmp_path / "run"), other)
    tomorrow = time.time() + 86400
    os.utime(tmp_path / "run" / "valid.jsonl", (tomorrow, tomorrow))
    found = verified(run, tmp_path / "cache")
    assert counts(found)["prepared data"] == (2, 0, 0, 1)
    assert found.tallies[-1].skipped_because == "written after the data were prepared"
    assert found.is_equal


def test_an_export_fails_where_something_differs(stories: Path, tmp_path: Path) -> None:
    other = rows(3)
    other[0]["messages"][1]["content"] = "there was a cat."
    run = prepare(full_run(stories, tmp_path / "run"), other)
    with pytest.raises(ModelError) as caught:
        export_run(ExportRequest(str(run.uri), str(tmp_path / "out")), tmp_path / "cache")
    place = f"{tmp_path}/run/valid.jsonl:1"
    expected = f"{place}: prepared data does not make the ids of llmforge: no stored example has these ids"
    assert str(caught.value).startswith(expected)
    assert f"llmforge verify {run.uri} shows where they part" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_too_long_are_not_stored(stories: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "a " * 200}, {"role": "assistant", "content": "b"}]}
    run = prepare(full_run(stories, tmp_path / "run", valid_rows=[*rows(2), long]), rows(2))
    found = verified(run, tmp_path / "cache")
    assert counts(found)["prepared data"] == (2, 0, 0, 1)
    assert found.is_equal


def test_control_tokens_in_a_message_are_told_apart(stories: Path, tmp_path: Path) -> None:
    run = full_run(stories, tmp_path / "run", valid_rows=[*rows(2), SPELLED])
    found = verified(run, tmp_path / "cache")
    assert counts(found)["chat template"] == counts(found)["server"] == (2, 0, 1, 0)
    assert found.is_equal
    assert {finding.kind for finding in found.findings} == {"control text"}
    assert "a message spells </s>" in found.findings[0].reason


def with_template(run: TrainedRun, template: str) -> Path:
    """A run of the same job whose checkpoint has another chat template."""
    weights = run.uri.parents[1] / "weights"
    uri = run.uri.parent / "changed"
    commit(uri, weights, run.job, template=template)
    return uri


CHANGED: dict[str, tuple[str, str]] = {
    "a space less": ('{{- " " -}}', ""),
    "no begin": ('{{- "<s>" -}}', ""),
    "a refusal": ("{%- for", '{{- raise_exception("no") -}}{%- for'),
}


@pytest.mark.parametrize(("old", "new"), CHANGED.values(), ids=CHANGED)
def test_a_changed_template_is_found(old: str, new: str, stories: Path, tmp_path: Path) -> None:
    """Also in rows that spell a control token, which would differ anyway."""
    system = {"role": "system", "content": "A story."}
    told = [{"messages": [system, *row["messages"]]} for row in (rows(1)[0], SPELLED)]
    run = full_run(stories, tmp_path / "run", valid_rows=told)
    template = (run.checkpoint / "chat_template.jinja").read_text()
    assert old in template
    found = verified(with_template(run, template.replace(old, new)), tmp_path / "cache")
    assert not found.is_equal
    assert counts(found)["chat template"] == counts(found)["server"] == (0, 2, 0, 0)
    first = found.first_difference
    assert first is not None
    assert first.kind == ("refusal" if new.startswith("{{- raise") else "difference")
    if first.kind == "difference":
        assert first.ours is not None and first.theirs is not None
        assert first.ours.token_id != first.theirs.token_id
        assert first.ours.before == first.theirs.before


def test_a_tokenizer_without_template(stories: Path, tmp_path: Path) -> None:
    run = full_run(stories, tmp_path / "run")
    with pytest.raises(ModelError, match="the tokenizer has no chat template"):
        verified(with_template(run, ""), tmp_path / "cache")


def test_rows_that_are_no_conversations(stories: Path, tmp_path: Path) -> None:
    text = [{"text": "Once upon a time"}] * 3
    run = full_run(stories, tmp_path / "run", task="causal_lm", valid_rows=text)
    (tmp_path / "run" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    found = verified(run, tmp_path / "cache")
    assert found.origin.endswith("probe conversations, because the data hold no conversations")
    assert found.is_equal


@pytest.mark.parametrize(
    ("name", "model_type", "prompt_format"),
    [
        ("llama3.1-hf", "llama", LLAMA_3),
        ("llama2-hf", "llama", LLAMA_2),
        ("mistral-v1-hf", "mistral", MISTRAL_BOS),
        ("mistral-v3-hf", "mistral", MISTRAL_BOS),
        ("qwen2-hf", "qwen2", CHATML),
        ("gpt2-hf", "gpt2", PLAIN),
    ],
)
def test_real_tokenizers_as_other_programs_load_them(
    name: str, model_type: str, prompt_format: PromptFormat, stories: Path, material: Path, tmp_path: Path
) -> None:
    """The architecture in `config.json` may make `transformers` build another tokenizer than the files say."""
    job = make_job(stories, tmp_path, generation_config={"prompt_format": prompt_format.model_dump()})
    exported = tmp_path / "out"
    exported.mkdir()
    save_tokenizer(served_tokenizer(material / "tokenizers" / name, prompt_format), exported)
    (exported / "config.json").write_text(json.dumps({"model_type": model_type}))
    with (material / "data" / "chat" / "oasst1-threads.jsonl").open(encoding="utf-8") as file:
        told = [parse_conversation(json.loads(next(file))["messages"], prompt_format) for _ in range(8)]
    chosen = ProofRows(tuple(ProofRow(f"row {number}", row) for number, row in enumerate(told)), "8 rows", True)
    found = verify(exported, job, chosen, None)
    assert counts(found)["chat template"] == counts(found)["server"] == (8, 0, 0, 0)


def test_the_command(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    run = full_run(stories, tmp_path / "run")
    good = CliRunner().invoke(app, ["verify", str(run.uri), "--num-prompts", "2"])
    assert good.exit_code == 0, good.output
    assert good.output.splitlines()[0] == "compared: 2 rows of the validation data"
    assert good.output.splitlines()[-1] == "equal"
    template = (run.checkpoint / "chat_template.jinja").read_text()
    changed = with_template(run, template.replace('{{- "<s>" -}}', ""))
    bad = CliRunner().invoke(app, ["verify", str(changed), "--json"])
    assert bad.exit_code == 1
    told = json.loads(bad.stdout)
    assert told["is_equal"] is False
    assert told["tallies"][0]["num_different"] == 3
    assert told["findings"][0]["position"] == 0
    assert told["findings"][0]["ours"]["token"] == "<s>"


def test_formats_with_white_space_kept(stories: Path, tmp_path: Path) -> None:
    kept = PromptFormat.model_validate({**STORY.model_dump(), "strip_whitespace": False})
    told = [{"messages": [{"role": "user", "content": " a\n "}, {"role": "assistant", "content": " b "}]}]
    run = full_run(stories, tmp_path / "run", valid_rows=told, generation_config={"prompt_format": kept.model_dump()})
    assert verified(run, tmp_path / "cache").is_equal

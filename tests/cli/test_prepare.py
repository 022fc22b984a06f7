"""`llmforge prepare`: the installed program on a Ray of its own, with a real pretrained model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmforge.dataset.shards import SampleReader, shard_name
from tests.cli.conftest import Llmforge
from tests.ray_fixtures import PROMPT_FORMAT

pytestmark = pytest.mark.slow

KEYS = [
    "rows_in", "rows_used", "dropped", "tokens", "trained_tokens", "packs", "packing_efficiency", "seconds", "cached",
    "path",
]  # fmt: skip


@pytest.fixture
def job(small_model: Path, real_rows: list[str], tmp_path: Path) -> str:
    """120 real rows, one of them without an answer; of the model only the tokenizer and `config.json`."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(small_model / name, tmp_path / "model" / name)
    bad = json.dumps({"messages": [{"role": "user", "content": "and?"}]})
    (tmp_path / "train.jsonl").write_text("\n".join([*real_rows[:119], bad]) + "\n", encoding="utf-8")
    settings = {
        "model_id": "model",
        "train_path": "train.jsonl",
        "output_dir": "runs",
        "accelerator": "cpu",
        "dataset": {"valid_fraction": 0.1, "on_invalid": "drop"},
        "generation_config": {"prompt_format": PROMPT_FORMAT},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return "job.yaml"


def test_the_interface_for_other_programs(llmforge: Llmforge, imports_of: Llmforge, job: str, tmp_path: Path) -> None:
    first = llmforge("prepare", job, "--json")
    assert first.returncode == 0, first.stderr
    (line,) = first.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert found["cached"] is False
    folder = Path(found["path"])
    assert folder.parent == tmp_path / "runs" / "data"
    stats = json.loads((folder / "stats.json").read_text())
    splits = (stats["train"], stats["valid"])
    assert found["rows_in"] == 120 == found["rows_used"] + sum(found["dropped"].values())
    assert found["dropped"]["invalid"] == 1
    assert len((folder / "dropped.jsonl").read_text().splitlines()) == sum(found["dropped"].values())
    assert found["tokens"] == sum(split["tokens"] for split in splits)
    assert found["trained_tokens"] == sum(split["trained_tokens"] for split in splits)
    assert found["packs"] == sum(split["samples"] for split in splits)
    assert found["packing_efficiency"] == stats["train"]["packing_efficiency"]
    samples = SampleReader([folder / shard_name("train")])
    assert stats["train"]["longest_sample"] == samples.num_tokens.max() <= stats["context_length"]
    assert stats["train"]["most_trained"] == samples.num_trained_tokens.max()
    assert sum(found["count"] for found in stats["length_histogram"]) == 119
    # Every number that the job leaves open, once, with its reason.
    chosen = [line.split(":")[0] for line in first.stderr.splitlines() if ":" in line]
    for key in ("context_length", "train_batch_size_per_device", "num_epochs", "max_steps", "learning_rate"):
        assert chosen.count(key) == 1, first.stderr
    assert first.stderr.count("ZeRO stage") == 1

    modules = ("ray", "torch", "transformers", "deepspeed", "peft", "matplotlib")
    again = imports_of(modules, "prepare", job, "--json")
    assert again.returncode == 0, again.stderr
    line, imported = again.stdout.splitlines()
    repeated = json.loads(line)
    assert imported == "imported: []"  # so no Ray has been started
    assert repeated == found | {"cached": True, "seconds": repeated["seconds"]}
    assert repeated["seconds"] < 2


def test_lines_for_people(llmforge: Llmforge, job: str, tmp_path: Path) -> None:
    first, again = llmforge("prepare", job), llmforge("prepare", job, "num_epochs=7")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    (folder,) = (path for path in (tmp_path / "runs" / "data").iterdir() if path.is_dir())
    *lines, last = first.stdout.splitlines()
    *repeated, found = again.stdout.splitlines()
    assert repeated == lines
    assert lines[0].startswith("rows: 120 in, ")
    assert last.startswith("prepared in ") and last.endswith(f" s: {folder}")
    assert found.startswith("found in ") and found.endswith(f" s: {folder}")


def test_what_cannot_be_prepared(llmforge: Llmforge, job: str, tmp_path: Path) -> None:
    done = llmforge("prepare", job, "train_path=none.jsonl", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.jsonl: no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()

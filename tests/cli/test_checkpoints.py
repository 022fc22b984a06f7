"""`llmforge checkpoints`: the table, the JSON, and what `--verify` finds."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmforge.checkpoint.lineage import Ancestor
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.cli.main import app
from llmforge.errors import CheckpointError
from llmforge.storage.base import open_storage
from tests.checkpoint.run_folders import job, save_run
from tests.checkpoint.saving import ATTEMPT, rank_files, save
from tests.cli.conftest import Llmforge

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_storage(str(tmp_path / "run")))


@pytest.fixture
def infos(store: CheckpointStore, tmp_path: Path) -> list[CheckpointInfo]:
    """A run with three complete checkpoints, the second of which is the best, and an unfinished one."""
    found = [save(store, tmp_path, step, eval_loss=loss) for step, loss in ((20, 2.5), (40, 1.25), (1060, None))]
    store.upload_rank(f"step-00001080-{ATTEMPT}", rank_files(tmp_path, 1080, 1), 1, 4)
    return found


def checkpoints(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["checkpoints", *arguments])


def damage(tmp_path: Path, info: CheckpointInfo) -> None:
    file = tmp_path / "run/checkpoints" / info.name / "model.safetensors"
    file.write_bytes(b"x" + file.read_bytes()[1:])


def test_the_table(infos: list[CheckpointInfo], store: CheckpointStore, tmp_path: Path) -> None:
    store.set_aside(infos[0], "1 of 3 files is not what was written:\n  model.safetensors: missing")
    done = checkpoints(f"{tmp_path}/run")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = re.sub(TIME, "2026-11-21 11:40:03", done.stdout).splitlines()
    assert lines == [
        "name                     step  validation loss      size  saved at (UTC)       state",
        f"step-00000020-{ATTEMPT}     20           2.5000  2.83 KiB  2026-11-21 11:40:03  damaged:",
        "    1 of 3 files is not what was written:",
        "      model.safetensors: missing",
        f"step-00000040-{ATTEMPT}     40           1.2500  2.83 KiB  2026-11-21 11:40:03  complete, best",
        f"step-00001060-{ATTEMPT}  1,060                -  3.22 KiB  2026-11-21 11:40:03  complete, latest",
        f"step-00001080-{ATTEMPT}  1,080                -  1.12 KiB  2026-11-21 11:40:03  unfinished: 1 of 4 ranks"
        " uploaded",
    ]


def test_json(infos: list[CheckpointInfo], tmp_path: Path) -> None:
    done = checkpoints(f"{tmp_path}/run", "--json", "--verify")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["run"], found["lineage"]) == (f"{tmp_path}/run", [])
    assert [(row["step"], row["state"], row["is_verified"]) for row in found["checkpoints"]] == [
        (20, "complete", True),
        (40, "complete", True),
        (1060, "complete", True),
        (1080, "unfinished", False),
    ]
    best = found["checkpoints"][1]
    assert datetime.fromisoformat(best.pop("saved_at")) <= datetime.now(timezone.utc)
    assert best == {
        "name": infos[1].name,
        "step": 40,
        "eval_loss": 1.25,
        "size_bytes": infos[1].size_bytes,
        "state": "complete",
        "is_best": True,
        "is_latest": False,
        "is_verified": True,
        "is_being_removed": False,
        "ranks_uploaded": 2,
        "ranks": 2,
        "problems": [],
    }


def test_verify_names_the_wrong_file(infos: list[CheckpointInfo], tmp_path: Path) -> None:
    damage(tmp_path, infos[1])
    done = checkpoints(f"{tmp_path}/run", "--verify")
    assert done.exit_code == 1
    assert f"{infos[1].name}: reading 3 files, 2.83 KiB" in done.stderr.splitlines()
    lines = done.stdout.splitlines()
    assert [line.split("  ")[-1] for line in lines[1:3]] == ["complete and verified", "damaged:"]
    assert re.fullmatch(r"    model\.safetensors: SHA-256 [0-9a-f]{64}, not the [0-9a-f]{64} written", lines[3])
    # Without reading it nobody knows.
    assert "damaged" not in checkpoints(f"{tmp_path}/run").stdout


def test_verify_names_every_wrong_file_of_a_checkpoint_that_lacks_one(
    infos: list[CheckpointInfo], tmp_path: Path
) -> None:
    damage(tmp_path, infos[2])
    (tmp_path / "run/checkpoints" / infos[2].name / "engine/state-1.bin").unlink()
    done = checkpoints(f"{tmp_path}/run", "--verify", "--json")
    assert done.exit_code == 1
    rows = {row["name"]: row for row in json.loads(done.stdout)["checkpoints"]}
    missing, changed = rows[infos[2].name]["problems"]
    assert missing == "engine/state-1.bin: missing"
    assert changed.startswith("model.safetensors: SHA-256 ")


def test_the_folder_of_a_checkpoint_means_that_one(infos: list[CheckpointInfo], tmp_path: Path) -> None:
    damage(tmp_path, infos[1])
    done = checkpoints(f"{tmp_path}/run/checkpoints/{infos[0].name}", "--verify", "--json")
    assert done.exit_code == 0
    assert [row["name"] for row in json.loads(done.stdout)["checkpoints"]] == [infos[0].name]
    assert checkpoints(f"{tmp_path}/run/checkpoints/{infos[1].name}/", "--verify").exit_code == 1


def test_a_missing_file_shows_without_reading(infos: list[CheckpointInfo], tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints" / infos[2].name / "engine/state-1.bin").unlink()
    done = checkpoints(f"{tmp_path}/run")
    assert done.exit_code == 0
    assert "    engine/state-1.bin: no bytes, not 900" in done.stdout.splitlines()
    assert f"step-00000040-{ATTEMPT}     40           1.2500  2.83 KiB" in done.stdout
    assert "complete, best, latest" in done.stdout
    assert checkpoints(f"{tmp_path}/run", "--verify").exit_code == 1


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("nothing", "no checkpoint"),
        (f"run/checkpoints/step-00000099-{ATTEMPT}", f"no checkpoint step-00000099-{ATTEMPT}"),
    ],
)
def test_no_checkpoint_there(infos: list[CheckpointInfo], tmp_path: Path, place: str, what: str) -> None:
    run = place.split("/")[0]
    done = checkpoints(f"{tmp_path}/{place}")
    assert isinstance(done.exception, CheckpointError)
    assert str(done.exception) == (
        f"{tmp_path}/{run}: {what}; expected the folder of a run (with checkpoints/ in it) or of one checkpoint"
    )


def test_what_a_run_started_from(tmp_path: Path) -> None:
    places = {
        run: f"{tmp_path}/{run}/checkpoints/step-{step:08d}-{ATTEMPT}" for run, step in (("text", 9), ("sft", 70))
    }
    steps = {"text": 9, "sft": 70}
    lineage = tuple(
        Ancestor(run=run, checkpoint=uri.rpartition("/")[2], step=steps[run], uri=uri, manifest_sha256=64 * "0")
        for run, uri in places.items()
    )
    save_run(job(tmp_path, run_name="dpo"), [1.0], lineage=lineage)
    lines = checkpoints(f"{tmp_path}/dpo").stdout.splitlines()
    assert lines[2:] == [
        "trained in: text (step 9) -> sft (step 70) -> dpo",
        f"    text: {places['text']}",
        f"    sft: {places['sft']}",
    ]
    found = json.loads(checkpoints(f"{tmp_path}/dpo", "--json").stdout)
    assert found["lineage"] == [ancestor.model_dump() for ancestor in lineage]


@pytest.mark.slow
def test_the_program(llmforge: Llmforge, imports_of: Llmforge, infos: list[CheckpointInfo], tmp_path: Path) -> None:
    """Its exit codes and streams, and that it needs nothing of what trains."""
    done = imports_of(("torch", "ray", "transformers", "numpy", "pyarrow"), "checkpoints", "run")
    assert done.stdout.splitlines()[-1] == "imported: []"
    done = llmforge("checkpoints", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere: no checkpoint; expected the folder of a run" in done.stderr
    damage(tmp_path, infos[0])
    assert llmforge("checkpoints", "run", "--verify").returncode == 1

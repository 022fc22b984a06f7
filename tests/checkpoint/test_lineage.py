"""What a checkpoint tells of those that its training started from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmforge.checkpoint.exported import EXPORT_RECORD, ExportRecord, write_export_record
from llmforge.checkpoint.lineage import Ancestor, lineage_from, lineage_of, lineage_text
from llmforge.checkpoint.run_end import RunEnd, read_end, remove_end, write_end
from llmforge.checkpoint.store import CheckpointStore
from llmforge.storage.base import open_storage, write_bytes
from tests.checkpoint.run_folders import LORA, job, save_run


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_chain_of_runs_holds_when_they_are_removed(tmp_path: Path) -> None:
    (first,) = save_run(job(tmp_path, run_name="more-text"), [1.0])
    base = f"{tmp_path}/more-text/checkpoints/{first.name}"
    second = save_run(job(tmp_path, run_name="sft", lora_config=LORA), lineage=lineage_from([base]))[1]
    adapter = f"{tmp_path}/sft/checkpoints/{second.name}"
    found = lineage_from([base, adapter])
    assert found == (
        Ancestor(
            run="more-text",
            checkpoint=first.name,
            step=10,
            uri=base,
            manifest_sha256=sha256(Path(base) / "manifest.json"),
        ),
        Ancestor(
            run="sft",
            checkpoint=second.name,
            step=20,
            uri=adapter,
            manifest_sha256=sha256(Path(adapter) / "manifest.json"),
        ),
    )
    assert lineage_from([adapter]) == found
    (third,) = save_run(job(tmp_path, run_name="dpo", lora_config=LORA), [0.5], lineage=found)
    CheckpointStore(open_storage(f"{tmp_path}/sft")).retain(0)
    assert lineage_of(third) == found
    assert lineage_text(found) == "more-text (step 10) -> sft (step 20)"
    assert lineage_text(lineage_of(third), "dpo (step 10)") == "more-text (step 10) -> sft (step 20) -> dpo (step 10)"


def test_an_export_tells_what_it_was_made_of(tmp_path: Path) -> None:
    trained = job(tmp_path, run_name="sft", lora_config=LORA)
    (info,) = save_run(trained, [1.0], lineage=lineage_from([]))
    merged = tmp_path / "merged"
    write_export_record(open_storage(str(merged)), ExportRecord.of(trained, info, ()))
    (found,) = lineage_from([str(merged)])
    assert (found.run, found.checkpoint, found.step, found.uri) == ("sft", info.name, 10, str(merged))
    assert found.manifest_sha256 == sha256(merged / EXPORT_RECORD)


def test_what_no_run_has_made(tmp_path: Path) -> None:
    save_run(job(tmp_path, run_name="sft"), [1.0])
    copied = "step-00000099-3fa29c01"
    assert lineage_from(["owner/model", str(tmp_path), f"{tmp_path}/sft", f"{tmp_path}/sft/checkpoints/{copied}"]) == ()
    assert lineage_text(()) == ""


def test_the_end_of_a_run(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    assert read_end(storage) is None
    write_end(storage, RunEnd(outcome="stopped", step=7))
    assert read_end(storage) == RunEnd(outcome="stopped", step=7)
    remove_end(storage)
    assert read_end(storage) is None
    write_bytes(storage, "end.json", b"cut in ha")
    assert read_end(storage) is None

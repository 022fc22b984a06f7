"""What a worker group does with what others have left, and where it begins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch.distributed as dist

from llmforge.checkpoint.names import step_of
from llmforge.checkpoint.staging import Staging
from llmforge.checkpoint.store import CheckpointStore, UnfinishedCheckpoint
from llmforge.errors import CheckpointError
from llmforge.storage.base import open_storage
from llmforge.train.recovery import Adoption, Findings, finish_or_remove_leftovers, plan_adoption, restore_newest
from tests.checkpoint.memory_storage import MemoryStorage

A, B, C = "step-00000010-3fa29c01", "step-00000020-3fa29c01", "step-00000030-3fa29c01"


def unfinished(name: str, *uploaded: int, world_size: int | None = 2) -> UnfinishedCheckpoint:
    return UnfinishedCheckpoint(
        name=name,
        step=step_of(name),
        world_size=world_size,
        uploaded_ranks=frozenset(uploaded),
        num_files=3,
        size_bytes=100,
        newest_at=datetime(2026, 11, 1, tzinfo=timezone.utc),
    )


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([Findings(()), Findings(())], None),
        ([Findings(((A, 0, 2),)), Findings(())], None),
        ([Findings(((A, 0, 2),)), Findings(((A, 1, 2),))], Adoption(A, ((0, 0), (1, 1)))),
        ([Findings(((A, 0, 2), (A, 1, 2))), Findings(((A, 0, 2), (A, 1, 2)))], Adoption(A, ((0, 0), (0, 1)))),
        ([Findings((), (unfinished(A, 0),)), Findings(((A, 1, 2),))], Adoption(A, ((1, 1),))),
        ([Findings(((A, 0, 2),), (unfinished(A, 1),)), Findings(())], Adoption(A, ((0, 0),))),
        ([Findings((), (unfinished(A, 0, 1),))], Adoption(A, ())),
        ([Findings((), (unfinished(A, 0, world_size=None),))], None),
        ([Findings(((A, 0, 1), (B, 0, 1)))], Adoption(B, ((0, 0),))),
        ([Findings(((A, 0, 1), (B, 0, 2), (C, 1, 2)))], Adoption(A, ((0, 0),))),
        ([Findings(((A, 0, 1),), newest_step=10)], None),
        ([Findings(((A, 0, 1), (B, 0, 1)), newest_step=10)], Adoption(B, ((0, 0),))),
        ([Findings(((C, 2, 3), (C, 0, 3))), Findings(((C, 1, 3),))], Adoption(C, ((0, 0), (1, 1), (0, 2)))),
    ],
    ids=[
        "nothing is left",
        "a part is lost",
        "every rank has its own",
        "both ranks see the same disk",
        "one part is uploaded, the other staged",
        "rank 0 was the slower one",
        "all is uploaded and only the commit is missing",
        "nobody knows how many ranks took part",
        "the newest of two",
        "the newest that is whole",
        "one that is not newer than what is complete",
        "one that is",
        "other ranks, and fewer of them",
    ],
)
def test_the_plan(findings: list[Findings], expected: Adoption | None) -> None:
    assert plan_adoption(findings) == expected


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging.of_run(tmp_path / "cache", "run")


def write_part(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    return folder


def save(store: CheckpointStore, scratch: Path, name: str) -> None:
    store.upload_rank(name, write_part(scratch / name, name), 0, 1, {"step": step_of(name)})
    store.commit(name)


def nobody(word: str) -> bool:
    return False


def everybody(word: str) -> bool:
    return True


def test_a_run_without_checkpoints_begins_at_the_start(alone: None, tmp_path: Path, staging: Staging) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    assert finish_or_remove_leftovers(store, staging, nobody, 1) is None
    assert restore_newest(store, tmp_path / "restored") is None


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    alone: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    for name in (A, B):
        save(store, tmp_path / "scratch", name)
    (tmp_path / "run" / "checkpoints" / B / "weights").write_text(B.upper())
    restored = restore_newest(store, tmp_path / "restored")
    assert restored is not None and restored.info.name == A
    assert (restored.folder / "weights").read_text() == A
    assert not restored.is_copy
    assert f"checkpoint {B} is damaged and set aside; going on from {A}" in caplog.text
    assert "weights: SHA-256 " in caplog.text
    assert [info.name for info in store.list()] == [A]
    assert (tmp_path / "run" / "checkpoints" / B / "damaged.json").exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_in_silence(alone: None, tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    save(store, tmp_path / "scratch", A)
    (tmp_path / "run" / "checkpoints" / A / "weights").unlink()
    with pytest.raises(CheckpointError, match=f"every checkpoint of the run is damaged: {A}"):
        restore_newest(store, tmp_path / "restored")


def test_a_copy_is_made_of_what_is_elsewhere_and_discarded_once_loaded(alone: None, tmp_path: Path) -> None:
    store = CheckpointStore(MemoryStorage())
    save(store, tmp_path / "scratch", A)
    restored = restore_newest(store, tmp_path / "restored")
    assert restored is not None and restored.is_copy
    assert (restored.folder / "weights").read_text() == A
    restored.discard_copy()
    assert not (tmp_path / "restored").exists()


def test_a_save_that_was_staged_whole_is_brought_to_its_end(alone: None, tmp_path: Path, staging: Staging) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    save(store, tmp_path / "scratch", A)
    with staging.writing(B, 0) as folder:
        (folder / "weights").write_text(B)
    staging.mark_whole(B, 0, 1, {"step": 20})
    with staging.writing(C, 0) as folder:
        (folder / "weights").write_text("cut in ha")
    assert finish_or_remove_leftovers(store, staging, nobody, num_to_keep=1) == B
    restored = restore_newest(store, tmp_path / "restored")
    assert restored is not None
    assert (restored.info.name, restored.info.metadata) == (B, {"step": 20})
    assert (restored.folder / "weights").read_text() == B
    assert store.resolve("latest").name == B
    assert not staging.root.exists()


def test_what_cannot_be_finished_is_removed_where_its_owner_is_dead(
    alone: None, tmp_path: Path, staging: Staging
) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    store.upload_rank(B, write_part(tmp_path / "part", B), 0, 2, {"step": 20})
    assert finish_or_remove_leftovers(store, staging, nobody, 1) is None
    assert [save.name for save in store.unfinished()] == [B]
    assert finish_or_remove_leftovers(store, staging, everybody, 1) is None
    assert store.unfinished() == []

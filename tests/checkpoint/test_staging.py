"""Saves on a node's disk: what counts as whole, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmforge.checkpoint.staging import Staging

NAME = "step-00000200-3fa29c01"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging.of_run(tmp_path, "s3://bucket/runs/a")


def stage(staging: Staging, name: str = NAME, rank: int = 0) -> None:
    with staging.writing(name, rank) as folder:
        (folder / "optimizer").mkdir()
        (folder / "optimizer" / "share").write_text(f"of rank {rank}")
    staging.mark_whole(name, rank, 2, {"step": 200, "eval_loss": float("nan")})


def test_a_part_is_there_once_it_is_whole(staging: Staging) -> None:
    assert staging.parts() == []
    with staging.writing(NAME, 1) as folder:
        (folder / "weights").write_text("cut in ha")
    assert staging.parts() == []
    staging.mark_whole(NAME, 1, 2, {"step": 200})
    (part,) = staging.parts()
    assert (part.record.name, part.record.rank, part.record.world_size) == (NAME, 1, 2)
    assert part.record.metadata == {"step": 200}
    assert [path.name for path in part.folder.iterdir()] == ["weights"]


def test_ranks_of_a_node_share_it_and_runs_do_not(staging: Staging, tmp_path: Path) -> None:
    for rank in (1, 0):
        stage(staging, rank=rank)
    stage(staging, "step-00000100-3fa29c01")
    found = [
        (part.record.name[:13], part.record.rank) for part in Staging.of_run(tmp_path, "s3://bucket/runs/a").parts()
    ]
    assert found == [("step-00000100", 0), ("step-00000200", 0), ("step-00000200", 1)]
    assert Staging.of_run(tmp_path, "s3://bucket/runs/b").parts() == []


def test_numbers_that_are_not_finite_come_back_as_none(staging: Staging) -> None:
    stage(staging)
    assert staging.parts()[0].record.metadata == {"step": 200, "eval_loss": None}


def test_what_the_machine_had_before_it_was_started_does_not_count(staging: Staging) -> None:
    """Its disk may hold zeros where the page cache held the bytes."""
    stage(staging)
    (mark,) = staging.root.rglob("staged.json")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mark.write_text(mark.read_text().replace(boot_id, "0" * len(boot_id)))
    assert staging.parts() == []


@pytest.mark.parametrize("text", ["", "{}", "not JSON"])
def test_a_mark_that_cannot_be_read_does_not_count(staging: Staging, text: str) -> None:
    stage(staging)
    (mark,) = staging.root.rglob("staged.json")
    mark.write_text(text)
    assert staging.parts() == []


def test_nothing_is_left_of_what_is_removed(staging: Staging) -> None:
    stage(staging)
    stage(staging, rank=1)
    staging.remove(NAME, 0)
    staging.remove(NAME, 0)
    assert [part.record.rank for part in staging.parts()] == [1]
    staging.remove(NAME, 1)
    assert not staging.root.exists()
    stage(staging)
    staging.clear()
    assert not staging.root.exists()

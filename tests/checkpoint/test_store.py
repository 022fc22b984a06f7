"""The checkpoints of a run: found when complete, verified, ranked, removed, and safe against a death at any moment."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import JsonValue

from llmforge.checkpoint.names import checkpoint_name, is_checkpoint_name, new_attempt_id, step_of
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.errors import CheckpointError
from llmforge.storage.base import Storage, open_storage, read_bytes, write_bytes
from tests.storage.failing_storage import FailingStorage, KilledError

NUM_RANKS = 2


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.fixture
def store(storage: Storage) -> CheckpointStore:
    return CheckpointStore(storage)


def rank_files(folder: Path, step: int, rank: int) -> Path:
    """The local files of one rank; rank 0 also has the weights."""
    folder = folder / f"step-{step}-rank-{rank}"
    (folder / "engine").mkdir(parents=True, exist_ok=True)
    (folder / "engine" / f"state-{rank}.bin").write_bytes(f"state of {rank} at {step}".encode() * 50)
    if rank == 0:
        (folder / "model.safetensors").write_bytes(f"weights at {step}".encode() * 100)
    return folder


def save(
    store: CheckpointStore, local: Path, step: int, attempt: str = "a1", eval_loss: JsonValue = None
) -> CheckpointInfo:
    name = checkpoint_name(step, attempt)
    for rank in range(NUM_RANKS):
        store.upload_rank(name, rank_files(local, step, rank), rank)
    return store.commit(name, NUM_RANKS, {"eval_loss": eval_loss, "epoch": 1})


def names(store: CheckpointStore) -> list[str]:
    return [info.name for info in store.list()]


def test_names() -> None:
    assert checkpoint_name(200, "1f2e3d4c") == "step-00000200-1f2e3d4c"
    assert step_of("step-123456789-ab") == 123456789
    assert is_checkpoint_name(checkpoint_name(0, new_attempt_id()))
    assert new_attempt_id() != new_attempt_id()
    for step, attempt in ((-1, "ab"), (1, ""), (1, "a/b"), (1, "A-B")):
        with pytest.raises(ValueError, match="is not the name of a checkpoint"):
            checkpoint_name(step, attempt)


def test_save_list_fetch(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.list() == []
    info = save(store, tmp_path, 20, eval_loss=1.5)
    assert info.name == "step-00000020-a1"
    assert (info.step, info.world_size, info.metadata) == (20, 2, {"eval_loss": 1.5, "epoch": 1})
    assert [record.path for record in info.files] == ["engine/state-0.bin", "engine/state-1.bin", "model.safetensors"]
    assert info.size_bytes == sum(record.size_bytes for record in info.files) > 2000
    save(store, tmp_path, 100)
    assert names(store) == ["step-00000020-a1", "step-00000100-a1"]
    assert store.list()[0] == info
    store.fetch(info, tmp_path / "out")
    assert (tmp_path / "out/engine/state-1.bin").read_bytes() == b"state of 1 at 20" * 50
    store.fetch(info, tmp_path / "some", ["model.safetensors"])
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["model.safetensors"]


def test_of_equal_steps_the_later_commit_is_the_newest(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, tmp_path, 20, "z9")
    save(store, tmp_path, 20, "a1")
    assert names(store) == ["step-00000020-z9", "step-00000020-a1"]
    assert store.resolve("latest").name == "step-00000020-a1"


def test_without_its_manifest_a_checkpoint_does_not_exist(store: CheckpointStore, tmp_path: Path) -> None:
    info = save(store, tmp_path, 20)
    name = checkpoint_name(40, "a1")
    store.upload_rank(name, rank_files(tmp_path, 40, 0), 0)
    assert names(store) == [info.name]
    assert store.resolve("latest") == info
    with pytest.raises(
        CheckpointError, match=f"no checkpoint '{name}'; there is {info.name}. Allowed are latest, best"
    ):
        store.resolve(name)
    with pytest.raises(CheckpointError, match="is not complete, so it cannot be called best"):
        store.point("best", name)


def test_nothing_there_yet(store: CheckpointStore) -> None:
    for name in ("latest", "best", "step-00000001-a"):
        with pytest.raises(CheckpointError, match="there is no complete checkpoint"):
            store.resolve(name)


def test_commit_names_the_missing_ranks(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, "a1")
    store.upload_rank(name, rank_files(tmp_path, 20, 1), 1)
    with pytest.raises(CheckpointError, match="step-00000020-a1: rank 0, 2 of 3 has not uploaded"):
        store.commit(name, 3, {})
    assert store.list() == []


def test_commit_refuses_a_file_of_two_ranks(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, "a1")
    store.upload_rank(name, rank_files(tmp_path, 20, 0), 0)
    store.upload_rank(name, rank_files(tmp_path, 20, 0), 1)
    with pytest.raises(CheckpointError, match=r"engine/state-0\.bin was uploaded by rank 0 and by rank 1"):
        store.commit(name, 2, {})


def test_commit_looks_for_the_files(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, "a1")
    for rank in range(NUM_RANKS):
        store.upload_rank(name, rank_files(tmp_path, 20, rank), rank)
    (tmp_path / "run/checkpoints" / name / "model.safetensors").unlink()
    (tmp_path / "run/checkpoints" / name / "engine/state-1.bin").write_bytes(b"cut")
    with pytest.raises(
        CheckpointError, match=r": engine/state-1\.bin: 3 bytes, not 800; model\.safetensors: no bytes, not 1300"
    ):
        store.commit(name, NUM_RANKS, {})
    assert store.list() == []


def test_what_is_complete_never_changes(store: CheckpointStore, tmp_path: Path) -> None:
    info = save(store, tmp_path, 20)
    with pytest.raises(CheckpointError, match="is complete already"):
        store.upload_rank(info.name, rank_files(tmp_path, 20, 0), 0)
    with pytest.raises(CheckpointError, match="is complete already"):
        store.commit(info.name, 2, {})


def test_a_rank_may_upload_again_before_the_commit(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, "a1")
    store.upload_rank(name, rank_files(tmp_path / "cut", 19, 0), 0)
    info = save(store, tmp_path, 20)
    store.fetch(info, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"weights at 20" * 100


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"), [(flip_a_bit, "SHA-256"), (cut, "1299 bytes, not the 1300"), (Path.unlink, "missing")]
)
def test_fetch_names_a_damaged_file(
    store: CheckpointStore, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    older = save(store, tmp_path, 20)
    info = save(store, tmp_path, 40)
    damage(tmp_path / "run/checkpoints" / info.name / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"other checkpoints: {older.name}") as caught:
        store.fetch(info, tmp_path / "out")
    assert f"model.safetensors: {words}" in str(caught.value)
    assert "state-" not in str(caught.value)


def test_a_damaged_manifest_hides_one_checkpoint_with_a_warning(
    store: CheckpointStore, storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = save(store, tmp_path, 20)
    for step, text in ((40, b'{"files": ['), (60, b'{"files": [], "metadata": {}}')):
        write_bytes(storage, f"checkpoints/{checkpoint_name(step, 'a1')}/manifest.json", text)
    write_bytes(storage, "checkpoints/of-somebody-else/manifest.json", b"{}")
    with caplog.at_level(logging.WARNING, "llmforge"):
        assert store.list() == [info]
    assert ["step-00000040-a1" in record.getMessage() for record in caplog.records] == [True, False]
    assert "step-00000060-a1" in caplog.records[1].getMessage()


def test_labels(store: CheckpointStore, storage: Storage, tmp_path: Path) -> None:
    infos = [save(store, tmp_path, 20 * i, eval_loss=loss) for i, loss in enumerate((3.0, 1.0, 2.0))]
    assert store.resolve("best") == infos[1]
    store.point("best", infos[2].name)
    store.point("latest", infos[0].name)
    assert read_bytes(storage, "best") == f"{infos[2].name}\n".encode()
    assert store.resolve("best") == infos[2]
    assert store.resolve("latest") == infos[2], "the newest complete one, whatever the file says"
    write_bytes(storage, "best", b"step-00000999-gone\n")
    assert store.resolve("best") == infos[1]


@pytest.mark.parametrize(
    ("losses", "num_to_keep", "protect", "kept"),
    [
        ((3.0, 1.0, 2.0, 4.0), 1, (), (1, 3)),
        ((3.0, 1.0, 2.0, 4.0), 2, (), (1, 2, 3)),
        ((3.0, 1.0, 2.0, 4.0), 1, (0,), (0, 1, 3)),
        ((3.0, 2.0, 1.0, 0.5), 1, (), (3,)),
        ((None, None, None, None), 1, (), (3,)),
        ((None, None, None, None), 2, (), (2, 3)),
        ((None, 5.0, None, None), 2, (), (1, 3)),
        ((1.0, 1.0, 1.0, math.nan), 1, (), (2, 3)),
        ((1.0, 2.0, 3.0, 4.0), 9, (), (0, 1, 2, 3)),
    ],
)
def test_retention(
    store: CheckpointStore,
    tmp_path: Path,
    losses: tuple[float | None, ...],
    num_to_keep: int,
    protect: tuple[int, ...],
    kept: tuple[int, ...],
) -> None:
    all_names = [save(store, tmp_path, i, eval_loss=loss).name for i, loss in enumerate(losses)]
    removed = store.retain(num_to_keep, [all_names[i] for i in protect])
    assert names(store) == [all_names[i] for i in kept]
    assert removed == [name for i, name in enumerate(all_names) if i not in kept]
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == set(names(store))


def test_retention_leaves_unfinished_ones_alone(store: CheckpointStore, tmp_path: Path) -> None:
    store.upload_rank(checkpoint_name(10, "a1"), rank_files(tmp_path, 10, 0), 0)
    save(store, tmp_path, 20)
    save(store, tmp_path, 30)
    assert store.retain(1) == ["step-00000020-a1"]
    assert (tmp_path / "run/checkpoints/step-00000010-a1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("after_effect", [False, True])
def test_killed_anywhere_nothing_half_is_visible_and_nothing_old_is_lost(tmp_path: Path, after_effect: bool) -> None:
    """A save, its label and the retention after it, cut at each operation in turn, then done again by a new start."""
    num_kills = 0
    for fail_at in range(1, 200):
        storage = open_storage(str(tmp_path / f"run-{fail_at}"))
        old = save(CheckpointStore(storage), tmp_path, 20, eval_loss=2.0)
        dying = CheckpointStore(FailingStorage(storage, fail_at, after_effect))
        try:
            new = save(dying, tmp_path, 40, "a2", eval_loss=1.0)
            dying.point("best", new.name)
            dying.retain(1)
        except KilledError:
            num_kills += 1
            assert_all_whole(CheckpointStore(storage), old, tmp_path / f"out-{fail_at}")
            save(CheckpointStore(storage), tmp_path, 40, "a3", eval_loss=1.0)
            assert CheckpointStore(storage).resolve("latest").name == "step-00000040-a3"
        else:
            break
    assert num_kills > 20
    assert names(CheckpointStore(storage)) == [new.name]


def assert_all_whole(store: CheckpointStore, old: CheckpointInfo, target: Path) -> None:
    """Every visible checkpoint can be fetched; the old one is gone only when the new one is there."""
    visible = store.list()
    assert visible == [old] or visible[-1].step == 40
    for info in visible:
        store.fetch(info, target / info.name)
        assert (target / info.name / "model.safetensors").read_bytes() == f"weights at {info.step}".encode() * 100

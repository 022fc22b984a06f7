"""The checkpoints of a run: found when complete, verified, ranked, set aside, removed."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from llmforge.checkpoint.names import attempt_word, checkpoint_name, driver_of
from llmforge.checkpoint.store import CheckpointStore, UnfinishedCheckpoint
from llmforge.checkpoint.upload import RECORDED_FROM_BYTES
from llmforge.errors import CheckpointError
from llmforge.storage.base import Storage, open_storage, read_bytes, write_bytes
from tests.checkpoint.memory_storage import START, MemoryStorage
from tests.checkpoint.saving import ATTEMPT, DRIVER, NUM_RANKS, names, rank_files, save, upload
from tests.storage.failing_storage import FailingStorage, KilledError


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> CheckpointStore:
    return CheckpointStore(storage)


def key_of(name: str, path: str) -> str:
    return f"checkpoints/{name}/{path}"


def test_save_list_fetch(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.list() == []
    info = save(store, tmp_path, 20, eval_loss=1.5)
    assert info.name == f"step-00000020-{ATTEMPT}"
    assert (info.step, info.world_size, info.metadata) == (20, 2, {"eval_loss": 1.5, "epoch": 1})
    assert [record.path for record in info.files] == ["engine/state-0.bin", "engine/state-1.bin", "model.safetensors"]
    assert info.size_bytes == sum(record.size_bytes for record in info.files) > 2000
    save(store, tmp_path, 100)
    assert names(store) == [f"step-00000020-{ATTEMPT}", f"step-00000100-{ATTEMPT}"]
    assert store.list()[0] == info
    store.fetch(info, tmp_path / "out")
    assert (tmp_path / "out/engine/state-1.bin").read_bytes() == b"state of 1 at 20" * 50
    store.fetch(info, tmp_path / "some", ["model.safetensors"])
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["model.safetensors"]


def test_of_equal_steps_the_later_commit_is_the_newest(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, tmp_path, 20, "ffffff00")
    save(store, tmp_path, 20, "00000000")
    assert names(store) == ["step-00000020-ffffff00", "step-00000020-00000000"]
    assert store.resolve("latest").name == "step-00000020-00000000"


def test_without_its_manifest_a_checkpoint_does_not_exist(store: CheckpointStore, tmp_path: Path) -> None:
    info = save(store, tmp_path, 20)
    name = upload(store, tmp_path, 40)
    assert names(store) == [info.name]
    assert store.resolve("latest") == info
    with pytest.raises(
        CheckpointError,
        match=rf"no checkpoint '{name}' \(it is unfinished\); there is {info.name}\. Allowed are latest, best",
    ):
        store.resolve(name)
    with pytest.raises(CheckpointError, match="is not complete, so it cannot be called best"):
        store.point("best", name)


def test_nothing_there_yet(store: CheckpointStore) -> None:
    for name in ("latest", "best", "step-00000001-a"):
        with pytest.raises(CheckpointError, match="there is no complete checkpoint"):
            store.resolve(name)


def test_commit_names_the_missing_ranks(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, ATTEMPT)
    store.upload_rank(name, rank_files(tmp_path, 20, 1), 1, 4)
    with pytest.raises(CheckpointError, match=f"{name}: rank 0 has not uploaded its files, so the checkpoint is not"):
        store.commit(name)
    store.upload_rank(name, rank_files(tmp_path, 20, 0), 0, 4)
    with pytest.raises(CheckpointError, match=f"{name}: rank 2, 3 of 4 has not uploaded its files"):
        store.commit(name)
    assert store.list() == []
    assert store.uploaded_ranks(name) == {0, 1}


def test_commit_refuses_a_file_of_two_ranks(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, ATTEMPT)
    for rank in range(NUM_RANKS):
        store.upload_rank(name, rank_files(tmp_path, 20, 0), rank, NUM_RANKS)
    with pytest.raises(CheckpointError, match=r"engine/state-0\.bin was uploaded by rank 0 and by rank 1"):
        store.commit(name)


def test_commit_refuses_ranks_of_another_number(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, ATTEMPT)
    store.upload_rank(name, rank_files(tmp_path, 20, 0), 0, 2)
    store.upload_rank(name, rank_files(tmp_path, 20, 1), 1, 3)
    with pytest.raises(CheckpointError, match=r"manifest-rank-00001\.json is of rank 1 of 3, not of rank 1 of 2"):
        store.commit(name)


@pytest.mark.parametrize("text", [b"{", b'{"files": [], "metadata": {"rank": 0}}'], ids=["cut", "of an older version"])
def test_commit_refuses_a_rank_manifest_that_says_nothing(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, text: bytes
) -> None:
    name = upload(store, tmp_path, 20)
    write_bytes(storage, f"checkpoints/{name}/manifest-rank-00000.json", text)
    with pytest.raises(
        CheckpointError, match=f"manifest-rank-00000.json(.|\n)*So {name} is not committed. Save again."
    ):
        store.commit(name)
    (save_left,) = store.unfinished()
    assert save_left.uploaded_ranks == {0, 1}
    assert save_left.world_size is None


def test_commit_looks_for_the_files(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    name = upload(store, tmp_path, 20)
    storage.delete(key_of(name, "model.safetensors"))
    write_bytes(storage, key_of(name, "engine/state-1.bin"), b"cut")
    with pytest.raises(
        CheckpointError, match=r": engine/state-1\.bin: 3 bytes, not 800; model\.safetensors: no bytes, not 1300"
    ):
        store.commit(name)
    assert store.list() == []


def test_what_is_complete_never_changes(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    info = save(store, tmp_path, 20)
    before = storage.list()
    with pytest.raises(CheckpointError, match="is complete already, with other files than "):
        store.upload_rank(info.name, rank_files(tmp_path, 19, 0), 0, NUM_RANKS)
    # A process that comes late with the very same does no harm.
    store.upload_rank(info.name, rank_files(tmp_path, 20, 0), 0, NUM_RANKS, {"eval_loss": 9.0})
    assert store.commit(info.name) == info
    assert storage.list() == before


def test_a_second_commit_of_other_files_is_refused(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Two groups that take the same name, which they never should: the first stays."""
    name = upload(store, tmp_path, 20)

    class Rival(FailingStorage):
        def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
            if key.endswith("/manifest.json"):
                write_bytes(storage, key, read_bytes(storage, f"checkpoints/{name}/manifest-rank-00001.json"))
            super().upload(source, key, replace=replace)

    with pytest.raises(CheckpointError, match="its manifest is not that of a checkpoint"):
        CheckpointStore(Rival(storage, 99)).commit(name)


def test_a_rank_may_upload_again_before_the_commit(store: CheckpointStore, tmp_path: Path) -> None:
    name = checkpoint_name(20, ATTEMPT)
    store.upload_rank(name, rank_files(tmp_path / "cut", 19, 0), 0, NUM_RANKS)
    info = save(store, tmp_path, 20)
    store.fetch(info, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"weights at 20" * 100


def large_part(folder: Path, *fillings: bytes) -> Path:
    """Files large enough to be recorded one by one, and a small one."""
    folder.mkdir(parents=True)
    for number, filling in enumerate(fillings):
        (folder / f"large-{number}").write_bytes(filling * RECORDED_FROM_BYTES)
    (folder / "small").write_bytes(b"small")
    return folder


def test_an_upload_that_was_cut_short_goes_on(storage: MemoryStorage, tmp_path: Path) -> None:
    """Cut at each operation in turn, and always begun again by another process."""
    name, part = checkpoint_name(20, ATTEMPT), large_part(tmp_path / "part", b"a")
    for fail_at in range(1, 30):
        try:
            CheckpointStore(FailingStorage(storage, fail_at)).upload_rank(name, part, 0, 1)
        except KilledError:
            assert CheckpointStore(storage).list() == []
        else:
            break
    assert fail_at > 6
    # Once when it was cut before the file was on record, and once for good.
    assert storage.uploads.count(key_of(name, "large-0")) == 2
    assert CheckpointStore(storage).verify(CheckpointStore(storage).commit(name)) == []
    assert not [key for key in storage.files if "upload-rank" in key]


def test_a_large_file_of_the_same_size_is_not_taken_for_another(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    name = checkpoint_name(20, ATTEMPT)
    earlier, part = large_part(tmp_path / "earlier", b"a"), large_part(tmp_path / "part", b"b")
    with pytest.raises(KilledError):
        CheckpointStore(FailingStorage(storage, 6)).upload_rank(name, earlier, 0, 1)
    assert f"checkpoints/{name}/large-0" in storage.uploads
    store.upload_rank(name, part, 0, 1)
    assert store.verify(store.commit(name)) == []
    assert storage.files[f"checkpoints/{name}/large-0"][0][:1] == b"b"


def test_a_part_that_is_there_is_not_sent_again(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    upload(store, tmp_path, 20)
    num_uploads = len(storage.uploads)
    upload(store, tmp_path, 20)
    assert len(storage.uploads) == num_uploads
    assert store.commit(upload(store, tmp_path, 20, eval_loss=1.0)).eval_loss == 1.0


def test_unfinished(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    save(store, tmp_path, 10)
    store.upload_rank(checkpoint_name(20, ATTEMPT), rank_files(tmp_path, 20, 1), 1, 3)
    storage.now += timedelta(minutes=5)
    with pytest.raises(KilledError):  # before anything but its record of the upload is there
        CheckpointStore(FailingStorage(storage, 3)).upload_rank(
            checkpoint_name(30, ATTEMPT), rank_files(tmp_path, 30, 0), 0, 8
        )
    half, begun = store.unfinished()
    assert replace(half, size_bytes=0) == UnfinishedCheckpoint(
        name=checkpoint_name(20, ATTEMPT),
        step=20,
        world_size=3,
        uploaded_ranks=frozenset({1}),
        num_files=2,
        size_bytes=0,
        newest_at=START,
    )
    assert half.size_bytes > 800
    assert (begun.step, begun.world_size, begun.uploaded_ranks) == (30, 8, frozenset())
    assert begun.newest_at == START + timedelta(minutes=5)


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[:-1]


def remove(data: bytes) -> None:
    return None


Damage = Callable[[bytes], "bytes | None"]
DAMAGES = pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "SHA-256 [0-9a-f]{64}, not the [0-9a-f]{64} written"),
        (cut, "1299 bytes, not the 1300 bytes written"),
        (remove, "missing"),
    ],
)


def do_damage(storage: Storage, key: str, damage: Damage) -> None:
    data = damage(read_bytes(storage, key))
    if data is None:
        storage.delete(key)
    else:
        write_bytes(storage, key, data)


@DAMAGES
def test_fetch_names_a_damaged_file(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, damage: Damage, words: str
) -> None:
    older = save(store, tmp_path, 20)
    info = save(store, tmp_path, 40)
    do_damage(storage, key_of(info.name, "model.safetensors"), damage)
    with pytest.raises(CheckpointError, match=f"other checkpoints: {older.name}") as caught:
        store.fetch(info, tmp_path / "out")
    assert re.search(f"\n  model.safetensors: {words}\n", str(caught.value))
    assert "state-" not in str(caught.value)


@DAMAGES
@pytest.mark.parametrize("is_local", [True, False])
def test_verify_names_each_wrong_file(tmp_path: Path, damage: Damage, words: str, is_local: bool) -> None:
    storage: Storage = open_storage(str(tmp_path / "run")) if is_local else MemoryStorage()
    store = CheckpointStore(storage)
    info = save(store, tmp_path, 20)
    read: list[str] = []
    assert store.verify(info, lambda record: read.append(record.path)) == []
    assert sorted(read) == ["engine/state-0.bin", "engine/state-1.bin", "model.safetensors"]
    do_damage(storage, key_of(info.name, "model.safetensors"), damage)
    (problem,) = store.verify(info)
    assert re.fullmatch(f"model.safetensors: {words}", problem)


def test_a_damaged_manifest_hides_one_checkpoint_with_a_warning(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = save(store, tmp_path, 20)
    for step, text in ((40, b'{"files": ['), (60, b'{"files": [], "metadata": {}}')):
        write_bytes(storage, f"checkpoints/{checkpoint_name(step, ATTEMPT)}/manifest.json", text)
    write_bytes(storage, "checkpoints/of-somebody-else/manifest.json", b"{}")
    with caplog.at_level(logging.WARNING, "llmforge"):
        assert store.list() == [info]
    assert [f"step-00000040-{ATTEMPT}" in record.getMessage() for record in caplog.records] == [True, False]
    assert f"step-00000060-{ATTEMPT}" in caplog.records[1].getMessage()


def test_labels(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
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
    storage: MemoryStorage,
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
    assert {key.split("/")[1] for key in storage.files} == set(names(store))


def test_a_score_says_which_is_best(store: CheckpointStore, tmp_path: Path) -> None:
    """Higher is better, whatever the losses; of equals the newer."""
    for step, (loss, score) in enumerate([(1.0, 0.5), (2.0, 0.75), (3.0, 0.75), (4.0, 0.25)]):
        name = checkpoint_name(step, ATTEMPT)
        for rank in range(NUM_RANKS):
            metadata = {"eval_loss": loss, "eval_score": score}
            store.upload_rank(name, rank_files(tmp_path, step, rank), rank, NUM_RANKS, metadata)
        store.commit(name)
    assert store.resolve("best").step == 2
    store.retain(2)
    assert names(store) == [checkpoint_name(step, ATTEMPT) for step in (1, 2, 3)]


def test_retention_leaves_unfinished_ones_alone(store: CheckpointStore, tmp_path: Path) -> None:
    store.upload_rank(checkpoint_name(10, ATTEMPT), rank_files(tmp_path, 10, 0), 0, NUM_RANKS)
    save(store, tmp_path, 20)
    save(store, tmp_path, 30)
    assert store.retain(1) == [checkpoint_name(20, ATTEMPT)]
    assert [save.step for save in store.unfinished()] == [10]


def test_retention_does_not_count_what_lacks_a_file(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Else the best and latest that can be used would be removed in favour of one that cannot."""
    infos = [save(store, tmp_path, step, eval_loss=loss) for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0))]
    storage.delete(key_of(infos[2].name, "model.safetensors"))
    assert store.retain(1) == [infos[0].name]
    assert names(store) == [infos[1].name, infos[2].name]


def test_a_damaged_one_that_is_set_aside(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    older, info = save(store, tmp_path, 20), save(store, tmp_path, 40, eval_loss=1.0)
    store.point("latest", info.name)
    store.set_aside(info, "model.safetensors: missing")
    store.set_aside(info, "another reason")
    assert store.list() == [older]
    assert store.resolve("latest") == older
    with pytest.raises(CheckpointError, match=rf"no checkpoint '{info.name}' \(it was set aside as damaged\)"):
        store.resolve(info.name)
    with pytest.raises(CheckpointError, match="was set aside as damaged, so it is not committed again"):
        store.commit(info.name)
    assert store.unfinished() == []
    assert store.sweep(lambda attempt: True, timedelta(0)) == []
    (damaged,) = store.survey().damaged
    assert (damaged.name, damaged.info, damaged.is_set_aside) == (info.name, info, True)
    assert damaged.reason == "model.safetensors: missing"
    # A person who knows better takes it back.
    record = json.loads(read_bytes(storage, key_of(info.name, "damaged.json")))
    write_bytes(storage, key_of(info.name, "manifest.json"), json.dumps(record["manifest"]).encode())
    storage.delete(key_of(info.name, "damaged.json"))
    assert store.list() == [older, info]


def test_what_was_set_aside_goes_once_there_is_a_newer_one(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    older, info = save(store, tmp_path, 20), save(store, tmp_path, 40)
    store.set_aside(info, "cut")
    assert store.retain(1) == []
    assert [damaged.name for damaged in store.survey().damaged] == [info.name]
    newer = save(store, tmp_path, 40, attempt_word(DRIVER, 1))
    assert store.retain(1, [info.name]) == [older.name]
    assert store.retain(1) == [info.name]
    assert (names(store), store.survey().damaged) == ([newer.name], ())
    assert {key.split("/")[1] for key in storage.files} == {newer.name}


def test_set_aside_comes_too_late(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path) -> None:
    info = save(store, tmp_path, 20)
    save(store, tmp_path, 40)
    store.retain(0)
    before = storage.list()
    store.set_aside(info, "missing")
    assert storage.list() == before


def test_survey_names_what_lacks_files_or_a_manifest(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    complete, info = save(store, tmp_path, 20), save(store, tmp_path, 40)
    storage.delete(key_of(info.name, "engine/state-0.bin"))
    write_bytes(storage, f"checkpoints/{checkpoint_name(60, ATTEMPT)}/manifest.json", b"{")
    write_bytes(storage, f"checkpoints/{checkpoint_name(80, ATTEMPT)}/damaged.json", b"{")
    found = store.survey()
    assert (found.complete, found.unfinished) == ((complete,), ())
    assert [(damaged.step, damaged.info, damaged.is_set_aside) for damaged in found.damaged] == [
        (40, info, False),
        (60, None, False),
        (80, None, True),
    ]
    assert found.damaged[0].reason == "engine/state-0.bin: no bytes, not 800"
    assert "manifest.json: not a manifest of format 1" in found.damaged[1].reason
    assert found.damaged[2].reason == "it was set aside; damaged.json cannot be read, so the reason is not known"
    with pytest.raises(CheckpointError, match=r"\(its manifest cannot be read\)"):
        store.resolve(checkpoint_name(60, ATTEMPT))


def test_what_is_removed_while_it_is_read_is_not_damaged(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    old, aside = save(store, tmp_path, 20), save(store, tmp_path, 30)
    store.set_aside(aside, "cut")
    storage.delete(key_of(aside.name, "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"{aside.name}: was set aside as damaged while it was read. Take anoth"):
        store.fetch(aside, tmp_path / "aside")
    save(store, tmp_path, 40)
    store.retain(0)
    with pytest.raises(CheckpointError, match=f"{old.name}: was removed while it was read. Take another checkpoint."):
        store.fetch(old, tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"{old.name}: was removed while it was read"):
        store.verify(old)


def test_sweep_removes_what_dead_attempts_have_left(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Not what another driver is at work on, nor what is complete, nor what llmforge has not made."""
    complete = save(store, tmp_path, 10)
    others, own = "abcdef00", attempt_word(DRIVER, 1)
    for attempt in (ATTEMPT, "1f2e3d4c", others, own, "copy"):
        store.upload_rank(checkpoint_name(20, attempt), rank_files(tmp_path, 20, 0), 0, NUM_RANKS)
    for folder in ("of-somebody-else", "step-20"):
        write_bytes(storage, f"checkpoints/{folder}/weights", b"theirs")
    asked: list[str] = []

    def is_dead(attempt: str) -> bool:
        asked.append(attempt)
        return driver_of(attempt) in (DRIVER, "1f2e3d") and attempt != own

    assert store.sweep(is_dead) == [checkpoint_name(20, "1f2e3d4c"), checkpoint_name(20, ATTEMPT)]
    assert sorted(asked) == ["1f2e3d4c", ATTEMPT, own, others]
    left = {key.split("/")[1] for key in storage.files}
    assert left == {
        complete.name,
        checkpoint_name(20, others),
        checkpoint_name(20, own),
        checkpoint_name(20, "copy"),
        "of-somebody-else",
        "step-20",
    }
    assert storage.discarded == [f"checkpoints/{checkpoint_name(20, attempt)}" for attempt in ("1f2e3d4c", ATTEMPT)]
    assert store.list() == [complete]


def test_sweep_removes_what_nobody_has_added_to_for_long(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path
) -> None:
    """By the clock of the storage, which is asked only when something is unfinished."""
    save(store, tmp_path, 10)
    num_uploads = len(storage.uploads)
    assert store.sweep(lambda attempt: False) == []
    assert len(storage.uploads) == num_uploads
    store.upload_rank(checkpoint_name(20, ATTEMPT), rank_files(tmp_path, 20, 0), 0, NUM_RANKS)
    storage.now += timedelta(hours=23)
    store.upload_rank(checkpoint_name(20, ATTEMPT), rank_files(tmp_path, 20, 1), 1, NUM_RANKS)
    storage.now += timedelta(hours=23)
    assert store.sweep(lambda attempt: False) == []
    storage.now += timedelta(hours=2)
    assert store.sweep(lambda attempt: False, timedelta(hours=26)) == []
    assert store.sweep(lambda attempt: False) == [checkpoint_name(20, ATTEMPT)]
    assert {key.split("/")[1] for key in storage.files} == {checkpoint_name(10, ATTEMPT)}


def test_nothing_is_left_in_a_folder_of_this_machine(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")))
    save(store, tmp_path, 10)
    complete = save(store, tmp_path, 20)
    for attempt in (ATTEMPT, "abcdef00"):
        upload(store, tmp_path, 30, attempt)
        folder = tmp_path / "run/checkpoints" / checkpoint_name(30, attempt)
        (folder / ".cut.partial").write_bytes(b"half")
    assert store.sweep(lambda attempt: attempt == ATTEMPT) == [checkpoint_name(30, ATTEMPT)]
    assert store.retain(0) == [checkpoint_name(10, ATTEMPT)]
    left = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert left == [complete.name, checkpoint_name(30, "abcdef00")]

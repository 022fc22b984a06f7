"""Whatever is done to checkpoints, cut at each of its storage operations in turn, and what a new start makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from llmforge.checkpoint.names import checkpoint_name
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.errors import CheckpointError
from tests.checkpoint.memory_storage import MemoryStorage
from tests.checkpoint.saving import ATTEMPT, names, rank_files, save, upload, wrong_files
from tests.storage.failing_storage import FailingStorage, KilledError

LATER = "abcdef00"
"""The attempt of the start that follows."""


@dataclass(frozen=True)
class Cut:
    """What an action has left that was cut short."""

    storage: MemoryStorage
    store: CheckpointStore
    is_last: bool
    """The action was not cut at all."""


def cuts(before: MemoryStorage, action: Callable[[CheckpointStore], object], after_effect: bool) -> Iterator[Cut]:
    """The action on a copy of the storage, cut at its first operation, its second, ..., and done whole at last."""
    for fail_at in range(1, 200):
        storage = copy.deepcopy(before)
        try:
            action(CheckpointStore(FailingStorage(storage, fail_at, after_effect)))
        except KilledError:
            yield Cut(storage, CheckpointStore(storage), is_last=False)
        else:
            yield Cut(storage, CheckpointStore(storage), is_last=True)
            return
    raise AssertionError("never came to its end")


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> CheckpointStore:
    return CheckpointStore(storage)


both = pytest.mark.parametrize("after_effect", [False, pytest.param(True, marks=pytest.mark.slow)])


@pytest.mark.slow
@both
def test_a_save_its_labels_and_the_retention_behind_it(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool
) -> None:
    old = save(store, tmp_path, 20, eval_loss=2.0)

    def save_and_retain(store: CheckpointStore) -> None:
        new = save(store, tmp_path, 40, eval_loss=1.0)
        store.point("best", new.name)
        store.retain(1)

    num_cuts = 0
    for cut in cuts(storage, save_and_retain, after_effect):
        visible = cut.store.list()
        assert wrong_files(cut.storage) == []
        # The old one is gone only when the new one is there.
        assert visible == [old] or visible[-1].step == 40
        assert cut.store.resolve("latest") == visible[-1]
        cut.store.sweep(lambda attempt: attempt == ATTEMPT)
        assert cut.store.list() == visible
        assert cut.store.unfinished() == []
        save(cut.store, tmp_path, 40, LATER, eval_loss=0.5)
        cut.store.retain(1)
        assert names(cut.store) == [checkpoint_name(40, LATER)]
        assert_nothing_else(cut)
        num_cuts += not cut.is_last
    assert num_cuts > 30


@both
def test_an_upload_that_another_process_brings_to_its_end(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool
) -> None:
    name = checkpoint_name(40, ATTEMPT)
    for cut in cuts(storage, lambda store: save(store, tmp_path, 40, eval_loss=1.0), after_effect):
        info = save(cut.store, tmp_path, 40, eval_loss=1.0)
        assert (info.name, info.eval_loss, info.world_size) == (name, 1.0, 2)
        assert cut.store.list() == [info]
        assert wrong_files(cut.storage) == []
        assert cut.store.unfinished() == []


@both
def test_one_that_is_set_aside(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool
) -> None:
    """It can be read, or it is set aside: never neither, and never lost."""
    older, info = save(store, tmp_path, 20), save(store, tmp_path, 40)
    for cut in cuts(storage, lambda store: store.set_aside(info, "cut"), after_effect):
        aside = [damaged.name for damaged in cut.store.survey().damaged]
        assert (names(cut.store), aside) in (([older.name, info.name], []), ([older.name], [info.name]))
        assert cut.store.sweep(lambda attempt: True, timedelta(0)) == []
        cut.store.set_aside(info, "cut")
        assert cut.store.list() == [older]
        newer = save(cut.store, tmp_path, 60, LATER)
        cut.store.retain(0)
        assert cut.store.list() == [newer]
        assert_nothing_else(cut)


def five_checkpoints(store: CheckpointStore, local: Path) -> list[CheckpointInfo]:
    return [save(store, local, step, eval_loss=loss) for step, loss in enumerate((4.0, 1.0, 5.0, 2.0, 3.0))]


@both
def test_retention(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool) -> None:
    """The best two, the latest and the protected one can be used at any moment, and the next start removes the rest."""
    infos = five_checkpoints(store, tmp_path)
    kept = {infos[step].name for step in (0, 1, 3, 4)}
    for cut in cuts(storage, lambda store: store.retain(2, [infos[0].name]), after_effect):
        assert kept <= set(names(cut.store))
        assert wrong_files(cut.storage) == []
        cut.store.sweep(lambda attempt: True)
        assert kept <= set(names(cut.store))
        cut.store.retain(2, [infos[0].name])
        assert set(names(cut.store)) == kept
        assert_nothing_else(cut)


@both
def test_retention_of_what_was_set_aside(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool
) -> None:
    """What has been damaged is never taken for complete or unfinished on its way out."""
    info = save(store, tmp_path, 20)
    store.set_aside(info, "cut")
    newer = save(store, tmp_path, 40)
    for cut in cuts(storage, lambda store: store.retain(1), after_effect):
        assert cut.store.list() == [newer]
        cut.store.sweep(lambda attempt: True)
        cut.store.retain(1)
        assert cut.store.survey().damaged == ()
        assert_nothing_else(cut)


@both
def test_sweep(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool) -> None:
    complete = save(store, tmp_path, 20)
    upload(store, tmp_path, 40)
    store.upload_rank(checkpoint_name(60, ATTEMPT), rank_files(tmp_path, 60, 1), 1, 2)
    store.upload_rank(checkpoint_name(60, LATER), rank_files(tmp_path, 60, 1), 1, 2)
    num_cuts = 0
    for cut in cuts(storage, lambda store: store.sweep(lambda attempt: attempt == ATTEMPT), after_effect):
        assert cut.store.list() == [complete]
        assert wrong_files(cut.storage) == []
        cut.store.sweep(lambda attempt: attempt == ATTEMPT)
        assert [save.name for save in cut.store.unfinished()] == [checkpoint_name(60, LATER)]
        assert {key.split("/")[1] for key in cut.storage.files} <= {complete.name, checkpoint_name(60, LATER), ".clock"}
        num_cuts += not cut.is_last
    assert num_cuts > 15


@both
def test_what_is_half_removed_does_not_come_back_as_half(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, after_effect: bool
) -> None:
    """A process that comes late commits, or is refused; what is visible is whole."""
    info = save(store, tmp_path, 20)
    save(store, tmp_path, 40)
    refused = 0
    for cut in cuts(storage, lambda store: store.retain(0), after_effect):
        try:
            cut.store.commit(info.name)
        except CheckpointError:
            refused += 1
        assert wrong_files(cut.storage) == []
    assert refused > 5


def assert_nothing_else(cut: Cut) -> None:
    """No file lies there that is not of a complete checkpoint, its ranks' manifests included."""
    found = {key.split("/")[1] for key in cut.storage.files if key.startswith("checkpoints/")}
    assert found - {".clock"} == set(names(cut.store))

"""Two processes at work on the same checkpoints: every order in which one of them gets in between two operations of the
other, and some in which both do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.errors import CheckpointError
from llmforge.storage.base import Storage
from tests.checkpoint.memory_storage import MemoryStorage, run_in_turns
from tests.checkpoint.saving import names, save, upload, wrong_files

Action = Callable[[CheckpointStore], object]


@dataclass
class Outcome:
    """What two actions on one storage came to."""

    storage: MemoryStorage
    results: dict[str, object] = field(default_factory=dict)
    errors: dict[str, CheckpointError] = field(default_factory=dict)
    seen_wrong: list[str] = field(default_factory=list)
    """Files that a visible checkpoint lacked at some moment."""
    num_operations: int = 0

    def look(self, is_changed: bool) -> None:
        self.num_operations += 1
        if is_changed:
            self.seen_wrong += wrong_files(self.storage)


def in_turns(before: MemoryStorage, first: Action, second: Action, order: tuple[int, int]) -> Outcome:
    outcome = Outcome(copy.deepcopy(before))

    def process(name: str, action: Action) -> Callable[[Storage], None]:
        def run(storage: Storage) -> None:
            try:
                outcome.results[name] = action(CheckpointStore(storage))
            except CheckpointError as error:
                outcome.errors[name] = error

        return run

    run_in_turns(outcome.storage, process("first", first), process("second", second), order, outcome.look)
    return outcome


def num_operations(before: MemoryStorage, action: Action) -> int:
    return in_turns(before, action, lambda store: None, (0, 0)).num_operations


def orders(before: MemoryStorage, first: Action, second: Action) -> Iterator[tuple[int, int]]:
    """The second gets in, whole, at every place of the first; and the first at every place of the second."""
    num_first, num_second = num_operations(before, first), num_operations(before, second)
    yield from ((start, num_second) for start in range(num_first + 1))
    yield from ((0, start) for start in range(1, num_second))


def all_orders(before: MemoryStorage, first: Action, second: Action) -> Iterator[tuple[int, int]]:
    """The second gets in anywhere for any number of its operations."""
    num_first, num_second = num_operations(before, first), num_operations(before, second)
    return ((i, j) for i in range(num_first + 1) for j in range(num_second + 1))


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> CheckpointStore:
    return CheckpointStore(storage)


def everything_is_dead(store: CheckpointStore) -> list[str]:
    return store.sweep(lambda attempt: True)


every_order = pytest.mark.parametrize(
    "orders", [orders, pytest.param(all_orders, marks=pytest.mark.slow)], ids=["one at once", "both"]
)
main_orders = pytest.mark.parametrize("orders", [pytest.param(orders, marks=pytest.mark.slow)], ids=["one at once"])
Orders = Callable[[MemoryStorage, Action, Action], Iterator[tuple[int, int]]]


@every_order
def test_a_commit_while_a_sweep_takes_the_attempt_for_dead(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders
) -> None:
    """What was reported as committed stays; what is swept is never visible in part."""
    name = upload(store, tmp_path, 20)
    num_committed = num_swept = 0

    def commit(store: CheckpointStore) -> CheckpointInfo:
        return store.commit(name)

    for order in orders(storage, commit, everything_is_dead):
        outcome = in_turns(storage, commit, everything_is_dead, order)
        visible = names(CheckpointStore(outcome.storage))
        assert wrong_files(outcome.storage) == [], order
        if "first" in outcome.results:
            assert (visible, outcome.results["second"], outcome.seen_wrong) == ([name], [], []), order
            num_committed += 1
        else:
            # A manifest that came when all was gone is taken back at once.
            if outcome.seen_wrong:
                assert "was removed while it was committed" in str(outcome.errors["first"]), order
            num_swept += outcome.results["second"] == [name]
        if outcome.results["second"] == [name]:
            assert not [key for key in outcome.storage.files if name in key], order
    assert num_committed > 3
    assert num_swept > 3


@every_order
def test_two_commits(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders) -> None:
    name = upload(store, tmp_path, 20)

    def commit(store: CheckpointStore) -> CheckpointInfo:
        return store.commit(name)

    for order in orders(storage, commit, commit):
        outcome = in_turns(storage, commit, commit, order)
        assert outcome.errors == {}, order
        assert [outcome.results["first"]] == [outcome.results["second"]] == CheckpointStore(outcome.storage).list()
        assert outcome.seen_wrong == [], order


@main_orders
def test_two_sweeps(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders) -> None:
    name = upload(store, tmp_path, 20)
    complete = save(store, tmp_path, 40)
    for order in orders(storage, everything_is_dead, everything_is_dead):
        outcome = in_turns(storage, everything_is_dead, everything_is_dead, order)
        everything_is_dead(CheckpointStore(outcome.storage))
        assert outcome.errors == {}, order
        assert not [key for key in outcome.storage.files if name in key], order
        assert CheckpointStore(outcome.storage).list() == [complete]


@every_order
def test_a_reader_while_retention_removes(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders
) -> None:
    """It gets the whole checkpoint, or learns that it is gone; nothing is called damaged."""
    old, new = (save(store, tmp_path, step) for step in (20, 40))
    num_read = num_refused = 0

    def read(store: CheckpointStore) -> bool:
        return old in store.list() and store.verify(old) == []

    def retain(store: CheckpointStore) -> list[str]:
        return store.retain(0)

    for order in orders(storage, read, retain):
        outcome = in_turns(storage, read, retain, order)
        assert outcome.seen_wrong == [], order
        assert outcome.results["second"] == [old.name]
        assert CheckpointStore(outcome.storage).list() == [new]
        if "first" in outcome.errors:
            assert "was removed while it was read" in str(outcome.errors["first"]), order
            num_refused += 1
        else:
            num_read += outcome.results["first"] is True
    assert num_read > 1
    assert num_refused > 1


@main_orders
def test_a_survey_while_all_kinds_of_things_happen(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders
) -> None:
    """It never takes what comes or goes for damaged."""
    name = upload(store, tmp_path, 30)
    save(store, tmp_path, 20)
    save(store, tmp_path, 40)

    def act(store: CheckpointStore) -> None:
        store.commit(name)
        store.retain(0)

    for order in orders(storage, lambda store: store.survey(), act):
        outcome = in_turns(storage, lambda store: store.survey().damaged, act, order)
        assert (outcome.errors, outcome.results["first"], outcome.seen_wrong) == ({}, (), []), order


@main_orders
def test_two_retentions(store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders) -> None:
    infos = [save(store, tmp_path, step, eval_loss=loss) for step, loss in ((20, 3.0), (40, 1.0), (60, 4.0))]

    def retain(store: CheckpointStore) -> list[str]:
        return store.retain(1)

    for order in orders(storage, retain, retain):
        outcome = in_turns(storage, retain, retain, order)
        assert (outcome.errors, outcome.seen_wrong) == ({}, []), order
        retain(CheckpointStore(outcome.storage))
        assert CheckpointStore(outcome.storage).list() == infos[1:], order


@every_order
def test_setting_aside_while_retention_removes(
    store: CheckpointStore, storage: MemoryStorage, tmp_path: Path, orders: Orders
) -> None:
    info, newest = save(store, tmp_path, 20), save(store, tmp_path, 40)

    def set_aside(store: CheckpointStore) -> None:
        store.set_aside(info, "cut")

    def retain(store: CheckpointStore) -> list[str]:
        return store.retain(0)

    for order in orders(storage, set_aside, retain):
        outcome = in_turns(storage, set_aside, retain, order)
        assert (outcome.errors, outcome.seen_wrong) == ({}, []), order
        assert CheckpointStore(outcome.storage).list() == [newest], order
        retain(CheckpointStore(outcome.storage))
        everything_is_dead(CheckpointStore(outcome.storage))
        assert not [key for key in outcome.storage.files if info.name in key], order

"""Local folders: whole files only, whatever happens, and errors in words."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.storage.base import NotFoundError, check_writable, open_storage, read_bytes, write_bytes
from llmforge.storage.files import atomic_target, check_free_space, explained, free_bytes
from llmforge.storage.types import ExistsError
from tests.file_limit import file_size_limit


def test_round_trip_and_listing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "runs"))
    assert storage.list() == []
    assert not (tmp_path / "runs").exists()
    write_bytes(storage, "a/b/one", b"1")
    write_bytes(storage, "a/two", b"22")
    write_bytes(storage, "ab", b"333")
    assert [(file.key, file.size_bytes) for file in storage.list()] == [("a/b/one", 1), ("a/two", 2), ("ab", 3)]
    assert [file.key for file in storage.list("a")] == ["a/b/one", "a/two"]
    assert storage.list("nothing") == []
    assert storage.list("ab") == []
    age = datetime.now(timezone.utc) - storage.list()[0].modified_at
    assert -5 < age.total_seconds() < 60
    assert read_bytes(storage, "a/two") == b"22"
    write_bytes(storage, "a/two", b"2")
    assert read_bytes(storage, "a/two") == b"2"
    target = tmp_path / "new" / "folder" / "copy"
    storage.download("ab", target)
    assert target.read_bytes() == b"333"


def test_delete_is_idempotent_and_leaves_no_empty_folder(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write_bytes(storage, "a/b/one", b"1")
    write_bytes(storage, "a/two", b"2")
    storage.delete("a/b/one")
    storage.delete("a/b/one")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["two"]
    storage.delete("a/two")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with pytest.raises(NotFoundError, match="nothing: no such file"):
        storage.download("nothing", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_pickles_and_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = pickle.loads(pickle.dumps(open_storage("runs")))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    write_bytes(storage, "a", b"1")
    assert (tmp_path / "runs" / "a").read_bytes() == b"1"
    assert storage.root_uri == str(tmp_path / "runs")
    assert open_storage(storage.root_uri) == storage


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_target(target) as partial:
        partial.write_bytes(b"ne")
        raise KeyError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unfinished_file_is_not_listed(tmp_path: Path) -> None:
    with atomic_target(tmp_path / "file") as partial:
        partial.write_bytes(b"half")
        assert open_storage(str(tmp_path)).list() == []
    assert [file.key for file in open_storage(str(tmp_path)).list()] == ["file"]


def test_source_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"target: cannot write the file: No such file.*gone.*Check the path"):
        open_storage(str(tmp_path)).upload(tmp_path / "gone", "target")


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        write_bytes(open_storage(str(tmp_path / "file")), "a", b"1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"place: cannot write the file: No space left.*The disk is full"),
        explained("write the file", "place"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(200_000))
    storage = open_storage(str(tmp_path / "runs"))
    with (
        file_size_limit(100_000),
        pytest.raises(StorageError, match=r"runs/a: cannot write the file: File too large.*or choose another folder"),
    ):
        storage.upload(source, "a")
    assert list((tmp_path / "runs").iterdir()) == []
    storage.upload(source, "a")
    assert [file.size_bytes for file in storage.list()] == [200_000]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="may not do that here"):
        check_writable(open_storage(str(tmp_path / "locked")))


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(open_storage(str(tmp_path / "runs")))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_that_may_replace_none(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write_bytes(storage, "runs/a", b"1", replace=False)
    write_bytes(storage, "runs/a", b"1", replace=False)
    for other in (b"2", b"11", b""):
        with pytest.raises(ExistsError, match=f"^{tmp_path}/runs/a: a file with other bytes .* is left as it is"):
            write_bytes(storage, "runs/a", other, replace=False)
    assert read_bytes(storage, "runs/a") == b"1"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        write_bytes(storage, "runs/a/b", b"1", replace=False)


def test_of_many_writers_that_may_replace_none_one_wins(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def write(number: int) -> bool:
        try:
            write_bytes(storage, "a", b"%d" % number, replace=False)
        except ExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(write, range(8)))
    assert wins.count(True) == 1
    assert read_bytes(storage, "a") == b"%d" % wins.index(True)


def test_unfinished_files_are_discarded(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write_bytes(storage, "a/b/one", b"1")
    for name in ("a/.1.partial", "a/b/.2.partial", "a/c/d/.3.partial", "ab/.4.partial", ".5.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    storage.discard_unfinished("a")
    storage.discard_unfinished("nothing")

    def left() -> list[str]:
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))

    assert left() == [".5.partial", "a", "a/b", "a/b/one", "ab", "ab/.4.partial"]
    storage.discard_unfinished()
    assert left() == ["a", "a/b", "a/b/one"]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert abs(free_bytes(folder) - free_bytes(tmp_path)) < 1 << 30
    assert free_bytes(Path("not") / "there") > 0
    check_free_space(folder, 0, "a checkpoint")
    with pytest.raises(StorageError) as caught:
        check_free_space(folder, 1 << 60, "a checkpoint")
    message = str(caught.value)
    assert message.startswith(f"{folder}: ") and "but a checkpoint needs 1073741824.00 GiB. " in message
    assert message.endswith(" Free some space, or choose another folder.")
    assert list(tmp_path.iterdir()) == []

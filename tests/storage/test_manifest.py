"""Committed folders: visible when whole, verified when fetched, each damage named."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.storage.base import Storage, open_storage, read_bytes, write_bytes
from llmforge.storage.manifest import (
    AlreadyCommittedError,
    FileRecord,
    Manifest,
    check_folder,
    commit_folder,
    fetch_folder,
    read_manifest,
    remove_folder,
)
from llmforge.storage.types import DamagedError
from tests.storage.failing_storage import FailingStorage, KilledError

CONTENT = {"weights.bin": b"w" * 5000, "sub/config.json": b"{}", "empty": b""}


def make_folder(folder: Path, content: dict[str, bytes] | None = None) -> Path:
    for path, data in (content or CONTENT).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def test_commit_and_fetch(storage: Storage, tmp_path: Path) -> None:
    assert read_manifest(storage, "data/x") is None
    manifest = commit_folder(storage, "data/x", make_folder(tmp_path / "in"), {"rows": 3, "loss": math.nan})
    assert read_manifest(storage, "data/x") == manifest
    assert [record.path for record in manifest.files] == ["empty", "sub/config.json", "weights.bin"]
    assert manifest.files[2].sha256 == hashlib.sha256(b"w" * 5000).hexdigest()
    assert manifest.size_bytes == 5002
    assert manifest.metadata == {"rows": 3, "loss": None}
    fetch_folder(storage, "data/x", manifest, tmp_path / "out")
    assert content_of(tmp_path / "out") == CONTENT


def test_the_manifest_on_disk_is_plain_json(storage: Storage, tmp_path: Path) -> None:
    commit_folder(storage, "x", make_folder(tmp_path / "in", {"a": b"1"}), {"rows": 3})
    assert json.loads(read_bytes(storage, "x/manifest.json")) == {
        "format_version": 1,
        "files": [{"path": "a", "size_bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()}],
        "metadata": {"rows": 3},
    }


def test_fetch_of_some_paths_keeps_what_is_right_and_replaces_what_is_not(storage: Storage, tmp_path: Path) -> None:
    manifest = commit_folder(storage, "x", make_folder(tmp_path / "in"), {})
    out = tmp_path / "out"
    fetch_folder(storage, "x", manifest, out, paths=["weights.bin"])
    assert content_of(out) == {"weights.bin": CONTENT["weights.bin"]}
    inode = (out / "weights.bin").stat().st_ino
    make_folder(out, {"sub/config.json": b"[]"})
    fetch_folder(storage, "x", manifest, out)
    assert content_of(out) == CONTENT
    assert (out / "weights.bin").stat().st_ino == inode
    with pytest.raises(StorageError, match=r"x: has no nothing; it holds empty, sub/config\.json, weights\.bin"):
        fetch_folder(storage, "x", manifest, out, paths=["nothing"])


def test_every_damage_is_named(storage: Storage, tmp_path: Path) -> None:
    manifest = commit_folder(storage, "x", make_folder(tmp_path / "in"), {})
    stored = tmp_path / "store" / "x"
    data = bytearray(CONTENT["weights.bin"])
    data[1234] ^= 1
    (stored / "weights.bin").write_bytes(data)
    (stored / "sub/config.json").write_bytes(b"{")
    (stored / "empty").unlink()
    with pytest.raises(DamagedError) as caught:
        fetch_folder(storage, "x", manifest, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("store/x: 3 of 3 files are not what was written:")
    assert lines[1] == "  empty: missing"
    assert lines[2] == "  sub/config.json: 1 bytes, not the 2 bytes written"
    assert lines[3].startswith("  weights.bin: SHA-256 ")
    assert content_of(tmp_path / "out") == {}


def test_a_folder_of_this_machine_is_checked_to_the_byte(storage: Storage, tmp_path: Path) -> None:
    manifest = commit_folder(storage, "x", make_folder(tmp_path / "in"), {})
    check_folder(storage, "x", manifest)
    root = tmp_path / "store" / "x"
    make_folder(root, {"weights.bin": b"w" * 4999 + b"v"})
    (root / "empty").unlink()
    with pytest.raises(
        DamagedError, match=r"2 of 3 files are not what was written:\n  empty: missing\n  weights.bin: SHA"
    ):
        check_folder(storage, "x", manifest)


def test_a_folder_elsewhere_is_checked_by_size(storage: Storage, tmp_path: Path) -> None:
    """`FailingStorage` is no `LocalStorage`, as S3 is none."""
    remote = FailingStorage(storage, fail_at=10_000)
    manifest = commit_folder(remote, "x", make_folder(tmp_path / "in"), {})
    check_folder(remote, "x", manifest)
    root = tmp_path / "store" / "x"
    make_folder(root, {"weights.bin": b"w" * 4999, "sub/config.json": b"[]"})
    (root / "empty").unlink()
    damage = "2 of 3 files are not what was written:\n  empty: missing\n  weights.bin: 4999 bytes, not the 5000 bytes"
    with pytest.raises(DamagedError, match=damage):
        check_folder(remote, "x", manifest)


def test_a_committed_folder_never_changes(storage: Storage, tmp_path: Path) -> None:
    first = commit_folder(storage, "x", make_folder(tmp_path / "in"), {"by": 1})
    assert commit_folder(storage, "x", tmp_path / "in", {"by": 2}) == first
    with pytest.raises(AlreadyCommittedError, match="other files than"):
        commit_folder(storage, "x", make_folder(tmp_path / "in2", {"empty": b"no"}), {})
    assert content_of(tmp_path / "store" / "x").items() >= CONTENT.items()
    remove_folder(storage, "x")
    assert storage.list() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Invalid JSON"),
        (b'{"format_version": 2, "files": [], "metadata": {}}', "format_version: Input should be 1"),
        (b'{"files": [{"path": "../a", "size_bytes": 1, "sha256": "%s"}]}' % (b"0" * 64), "files: 0: path"),
        (b'{"files": [{"path": "a", "size_bytes": 1, "sha256": "12"}]}', "files: 0: sha256"),
    ],
)
def test_a_manifest_that_cannot_be_read(storage: Storage, text: bytes, words: str) -> None:
    write_bytes(storage, "x/manifest.json", text)
    with pytest.raises(DamagedError, match=r"x/manifest\.json: not a manifest of format 1") as caught:
        read_manifest(storage, "x")
    assert words in str(caught.value)


def test_a_path_stands_in_a_manifest_once() -> None:
    record = FileRecord(path="a", size_bytes=0, sha256="0" * 64)
    with pytest.raises(ValueError, match="a path stands in it twice"):
        Manifest(files=(record, record))


def test_what_cannot_be_committed(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder to upload"):
        commit_folder(storage, "x", tmp_path / "nothing", {})
    with pytest.raises(StorageError, match="kept for the commit record"):
        commit_folder(storage, "x", make_folder(tmp_path / "in", {"manifest.json": b"{}"}), {})
    assert read_manifest(storage, "x") is None


@pytest.mark.parametrize("after_effect", [False, True])
def test_killed_anywhere_a_folder_is_whole_or_does_not_exist(tmp_path: Path, after_effect: bool) -> None:
    source = make_folder(tmp_path / "in")
    kills = 0
    for fail_at in range(1, 100):
        storage = open_storage(str(tmp_path / f"store-{fail_at}"))
        try:
            commit_folder(FailingStorage(storage, fail_at, after_effect), "x", source, {})
        except KilledError:
            kills += 1
        assert_whole_or_absent(storage, tmp_path / f"a-{fail_at}")
        try:
            remove_folder(FailingStorage(storage, fail_at, after_effect), "x")
        except KilledError:
            assert_whole_or_absent(storage, tmp_path / f"b-{fail_at}")
        else:
            break
    assert kills >= 4
    assert storage.list() == []


def assert_whole_or_absent(storage: Storage, target: Path) -> None:
    manifest = read_manifest(storage, "x")
    if manifest is not None:
        fetch_folder(storage, "x", manifest, target)
        assert content_of(target) == CONTENT

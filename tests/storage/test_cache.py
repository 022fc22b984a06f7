"""Fingerprints and fetching of local files; those of S3 objects are in `test_s3.py`."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.storage.base import NotFoundError
from llmforge.storage.cache import FileFingerprint, fetch_to_cache, fingerprint


def test_local_fingerprint_is_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{}\n" * 1_000_000)
    expected = FileFingerprint(str(file), 3_000_000, f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}")
    assert fingerprint(str(file)) == expected


@pytest.mark.slow
def test_the_checksum_of_a_large_file_is_kept_as_long_as_it_is_untouched(tmp_path: Path) -> None:
    file, cache_folder = tmp_path / "rows.jsonl", tmp_path / "cache"
    file.write_bytes(b"{}\n" * 12_000_000)
    expected = fingerprint(str(file))
    os.utime(file, (time.time() + 60, time.time() + 60))  # young for as long as this takes
    assert fingerprint(str(file), cache_folder) == expected
    assert not cache_folder.exists()  # too young: a write within the same tick of the clock would not show
    os.utime(file)
    time.sleep(2.1)
    assert fingerprint(str(file), cache_folder) == expected
    (kept,) = (cache_folder / "checksums").iterdir()
    kept.write_text("0")
    assert fingerprint(str(file), cache_folder).checksum == "sha256:0"
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"[]")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    other = fingerprint(str(file), cache_folder)
    assert other.checksum == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" != expected.checksum


@pytest.mark.slow
def test_a_file_that_is_written_while_its_checksum_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(bytes(200_000_000))
    with file.open("r+b", buffering=0) as opened:
        writer = threading.Timer(0.05, opened.write, [b"x"])
        writer.start()
        with pytest.raises(StorageError) as caught:
            fingerprint(str(file))
        writer.join()
    assert str(caught.value) == f"{file}: changed while it was read; start the job again once nobody writes it"


def test_fingerprint_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.jsonl: no such file"):
        fingerprint(str(tmp_path / "gone.jsonl"))
    with pytest.raises(StorageError, match="A folder stands where a file is needed"):
        fingerprint(str(tmp_path))


def test_local_files_are_used_where_they_stand(tmp_path: Path) -> None:
    assert fetch_to_cache(str(tmp_path / "rows.jsonl"), tmp_path / "cache") == tmp_path / "rows.jsonl"
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_s3_is_not_a_file(tmp_path: Path) -> None:
    for uri in ("s3://bucket", "s3://bucket/folder/"):
        with pytest.raises(StorageError, match="names a folder where a file is needed"):
            fetch_to_cache(uri, tmp_path)

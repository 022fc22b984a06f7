"""Fingerprints and fetching of local files; those of S3 objects are in `test_s3.py`."""

from __future__ import annotations

import hashlib
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

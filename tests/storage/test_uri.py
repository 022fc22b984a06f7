"""Addresses: what is read as local, as S3, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmforge.errors import StorageError
from llmforge.storage.uri import check_key, is_s3, join_key, join_uri, local_path, split_s3


def test_local_paths_are_made_absolute() -> None:
    assert local_path("runs/a") == Path.cwd() / "runs/a"
    assert local_path("/data/a b") == Path("/data/a b")
    assert local_path("file:///data/a%20b") == Path("/data/a b")
    assert local_path("file://localhost/data") == Path("/data")
    assert local_path("~/runs") == Path.home() / "runs"
    assert local_path("odd:name") == Path.cwd() / "odd:name"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gs://bucket/a", ("gs:", "allowed are a local path, file:///path and s3://bucket/prefix")),
        ("s3a://bucket/a", ("did you mean s3://bucket/a?",)),
        ("s3:/bucket/a", ("did you mean s3://bucket/a?",)),
        ("S3://bucket/a", ("did you mean s3://bucket/a?",)),
        ("file:/data", ("did you mean file:///data?",)),
        ("https://host/a", ("no storage for https:",)),
        ("myfs://host/a", ("no storage for myfs:",)),
        ("file://server/share", ("three slashes",)),
        ("", ("is empty", "allowed are")),
    ],
)
def test_other_addresses_are_refused(uri: str, words: tuple[str, ...]) -> None:
    with pytest.raises(StorageError) as caught:
        local_path(uri)
    for word in words:
        assert word in str(caught.value)


def test_s3_addresses() -> None:
    assert is_s3("s3://bucket")
    assert not is_s3("/s3://bucket")
    assert split_s3("s3://bucket") == ("bucket", "")
    assert split_s3("s3://bucket/a/b c#1?x=2/") == ("bucket", "a/b c#1?x=2")
    with pytest.raises(StorageError, match="name of the bucket is missing"):
        split_s3("s3:///a")


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError, match="credentials never stand in an address") as caught:
        split_s3("s3://AKIAXX:topsecret@bucket/a")
    assert "topsecret" not in str(caught.value)


def test_joining() -> None:
    assert join_uri("s3://bucket/runs/", "a", "", "b") == "s3://bucket/runs/a/b"
    assert join_uri("/", "a") == "/a"
    assert join_uri("/") == "/"
    assert join_key("", "a", "b") == "a/b"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\0", "a/.12ab.partial"])
def test_keys_cannot_leave_their_root(key: str) -> None:
    with pytest.raises(ValueError, match=r"is not a relative path|unfinished"):
        check_key(key)


def test_plain_keys_pass() -> None:
    for key in ("a", "a/b.c", "step-1/.hidden", "a b/ü", "x.partial"):
        assert check_key(key) == key

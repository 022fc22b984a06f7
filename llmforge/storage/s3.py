"""Objects below a prefix of an S3 bucket as a `Storage`, through boto3.

Never pyarrow and never Ray: `pyarrow.fs.copy_files` returns without error when an upload to S3 fails. Credentials,
region, endpoint (`AWS_ENDPOINT_URL`), certificates (`AWS_CA_BUNDLE`) and checksum mode (for older servers,
`AWS_REQUEST_CHECKSUM_CALCULATION` and `AWS_RESPONSE_CHECKSUM_VALIDATION` as `when_required`) come from the environment
or the role of the machine that uses the storage: it pickles as bucket and prefix, nothing else.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import S3DownloadFailedError

from llmforge.errors import StorageError
from llmforge.storage import files, s3_errors
from llmforge.storage.s3_multipart import NUM_PARTS_AT_ONCE, PART_BYTES, discard_uploads, sends_checksums
from llmforge.storage.s3_upload import Upload
from llmforge.storage.types import PassingError, StoredFile
from llmforge.storage.uri import check_key, join_key, join_uri, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=16,
)

_UNSIGNED_CONFIG = Config(s3={"payload_signing_enabled": False})

_DOWNLOAD_CONFIG = TransferConfig(
    multipart_threshold=PART_BYTES,
    multipart_chunksize=PART_BYTES,
    max_concurrency=NUM_PARTS_AT_ONCE,
    preferred_transfer_client="classic",  # the other one (CRT) fails with custom endpoints
)

_CODES_WITHOUT_CAUSE = frozenset({"301", "400", "403", "404"})
"""Answers to HEAD carry no body, so their code is only the HTTP status."""


@dataclass(frozen=True)
class ObjectFacts:
    """One version of an object, as far as the server tells."""

    size_bytes: int
    etag: str
    """Changes with the content; its form is the server's own affair."""


@dataclass(frozen=True)
class S3Storage:
    """Keys are object names below `prefix` (empty: the whole bucket). May be used by several threads at once."""

    bucket: str
    prefix: str = ""

    @classmethod
    def from_uri(cls, uri: str) -> S3Storage:
        return cls(*split_s3(uri))

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str, str]]:
        return S3Storage, (self.bucket, self.prefix)

    @property
    def root_uri(self) -> str:
        return join_uri(f"s3://{self.bucket}", self.prefix)

    def upload(self, source: Path, key: str, *, replace: bool = True) -> None:
        with files.explained("read the file", source):
            size_bytes = source.stat().st_size
        upload = Upload(self._client, self.bucket, self._name(key), self._uri(key), source, size_bytes)
        try:
            with self._explained("upload", key):
                upload.run(replace=replace)
        except PassingError as error:
            error.made_progress = upload.made_progress
            raise
        stored_bytes = self.describe(key).size_bytes
        if stored_bytes != size_bytes:
            raise StorageError(
                f"{self._uri(key)}: {stored_bytes} bytes arrived of the {size_bytes} bytes of {source}. Either the file"
                " changed meanwhile or the server lost some: upload it again."
            )

    def download(self, key: str, target: Path) -> None:
        with self._explained("download", key), files.atomic_target(target) as partial:
            self._client.download_file(self.bucket, self._name(key), str(partial), Config=_DOWNLOAD_CONFIG)

    def list(self, prefix: str = "") -> builtins.list[StoredFile]:
        folder = join_key(self.prefix, check_key(prefix) if prefix else "")
        start = f"{self.prefix}/" if self.prefix else ""
        found: builtins.list[StoredFile] = []
        with self._explained("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{folder}/" if folder else ""
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    # An object named like a folder is a mark that some tools leave behind, not a file.
                    if not item["Key"].endswith("/"):
                        key = item["Key"].removeprefix(start)
                        found.append(StoredFile(key, item["Size"], item["LastModified"]))
        return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        with self._explained("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def discard_unfinished(self, prefix: str = "") -> None:
        folder = join_key(self.prefix, check_key(prefix) if prefix else "")
        with self._explained("discard unfinished uploads", prefix):
            discard_uploads(self._client, self.bucket, f"{folder}/" if folder else "")

    def describe(self, key: str) -> ObjectFacts:
        """Size and version of one object, by one request. Raises `NotFoundError`."""
        with self._explained("read", key):
            answer = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            return ObjectFacts(answer["ContentLength"], answer["ETag"].strip('"'))

    @cached_property
    def _client(self) -> S3Client:
        try:
            return _new_client()
        except ValueError as error:
            raise StorageError(
                f"{self.root_uri}: {error}. Check AWS_ENDPOINT_URL, such as http://host:9000."
            ) from error

    def _name(self, key: str) -> str:
        return join_key(self.prefix, check_key(key))

    def _uri(self, key: str) -> str:
        return join_uri(self.root_uri, key)

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        """Turn the exceptions of boto3 and of the local disk in the block into `StorageError`."""
        # Some of boto3's exceptions are `OSError`s too, so they are asked for first.
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, S3DownloadFailedError) as error:
            raise s3_errors.explain(self._cause(error), self._uri(key), action, self._endpoint()) from error
        except OSError as error:
            raise files.explain(f"{action} on this machine's side", self._uri(key), error) from error

    def _cause(self, error: s3_errors.SdkError) -> s3_errors.SdkError:
        """The error that tells most: of an answer without a body, that of a listing."""
        if s3_errors.error_code(error) not in _CODES_WITHOUT_CAUSE:
            return error
        try:
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        except (BotoCoreError, ClientError) as listing_error:
            return listing_error
        return error

    def _endpoint(self) -> str:
        return str(self._client.meta.endpoint_url) if "_client" in self.__dict__ else "not known yet"


def _new_client() -> S3Client:
    """A client that takes no SHA-256 of what it sends for the signature, as long as it sends a checksum of it.

    That is boto3's own rule for https. Over plain http it takes one all the same, which halves the speed of uploads and
    guards nothing: whoever can change requests there can change the answers to downloads, which nobody signs.
    """
    session = Session()
    client = session.client("s3", config=_CLIENT_CONFIG)
    if not sends_checksums(client):
        return client
    return session.client("s3", config=_CLIENT_CONFIG.merge(_UNSIGNED_CONFIG))

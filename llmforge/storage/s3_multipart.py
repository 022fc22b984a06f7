"""A large file to S3 in parts: an upload that was cut short goes on with the parts that the server has.

In: a client, a file, and the name of its object. Out: the object, or an exception of boto3 or of the system. What an
earlier process left is found by the name, and each of its parts is proved to be the file's before it is used.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict, cast

from botocore.exceptions import ClientError
from s3transfer.utils import ReadFileChunk

from llmforge.storage.parallel import in_parallel
from llmforge.storage.s3_errors import error_code

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.literals import ChecksumAlgorithmType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, PartTypeDef

PART_BYTES = 32 << 20
NUM_PARTS_AT_ONCE = 4

_MAX_PARTS = 9000
"""S3 allows 10 000."""
_BLOCK_BYTES = 1 << 20
_GONE = frozenset({"NoSuchUpload", "NoSuchKey", "404"})
_NO_LISTING = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405"})
_NO_LOOKING = _NO_LISTING | {"AccessDenied", "403"}


class Condition(TypedDict, total=False):
    """On what a write depends; empty: on nothing."""

    IfNoneMatch: str


class _Checksums(TypedDict, total=False):
    ChecksumAlgorithm: ChecksumAlgorithmType


@dataclass(frozen=True)
class _Slice:
    """The bytes of a file that make one part."""

    source: Path
    number: int
    """Counted from 1."""
    start: int
    size_bytes: int

    def open(self) -> IO[bytes]:
        """The slice as if it were a file; nothing is read yet."""
        return cast("IO[bytes]", ReadFileChunk.from_filename(str(self.source), self.start, self.size_bytes))

    def md5(self) -> bytes:
        """What servers call the ETag of a part, unless they encrypt with a key of their own."""
        digest = hashlib.md5(usedforsecurity=False)
        for block in self._blocks():
            digest.update(block)
        return digest.digest()

    def crc32(self) -> str:
        """As servers tell it: big-endian, in base 64."""
        value = 0
        for block in self._blocks():
            value = zlib.crc32(block, value)
        return base64.b64encode(value.to_bytes(4, "big")).decode()

    def _blocks(self) -> Iterator[bytes]:
        with self.open() as file:
            while block := file.read(_BLOCK_BYTES):
                yield block


@dataclass
class MultipartUpload:
    """One file on its way to one object, four parts at once, each slice read from the disk as it is sent."""

    client: S3Client
    bucket: str
    name: str
    source: Path
    size_bytes: int
    num_parts_sent: int = field(default=0, init=False)
    """New on the server since this object was made."""

    def run(self, condition: Condition) -> None:
        """Bring all parts to the server that it lacks, and make them the object.

        What was sent before an exception stays there for the next time.
        """
        try:
            self._go_on(condition)
        except ClientError as error:
            # The answer to our own completion was lost, or another process ended or discarded the same upload.
            if error_code(error) not in _GONE:
                raise
            if not self._is_there():
                self._go_on(condition)

    def _go_on(self, condition: Condition) -> None:
        upload_id, there = self._open_upload() or (self._begin(), {})
        parts = in_parallel(partial(self._bring, upload_id, there), self._slices(), NUM_PARTS_AT_ONCE)
        self.client.complete_multipart_upload(
            Bucket=self.bucket, Key=self.name, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
        )

    def _slices(self) -> list[_Slice]:
        part_bytes = max(PART_BYTES, -(-self.size_bytes // _MAX_PARTS))
        return [
            _Slice(self.source, number, start, min(part_bytes, self.size_bytes - start))
            for number, start in enumerate(range(0, self.size_bytes, part_bytes), start=1)
        ]

    def _checksums(self) -> _Checksums:
        """What is to be announced of the checksums that boto3 adds to the parts by itself."""
        return {"ChecksumAlgorithm": "CRC32"} if sends_checksums(self.client) else {}

    def _begin(self) -> str:
        answer = self.client.create_multipart_upload(Bucket=self.bucket, Key=self.name, **self._checksums())
        return answer["UploadId"]

    def _open_upload(self) -> tuple[str, dict[int, PartTypeDef]] | None:
        """The newest upload of this object that was begun and not ended, and its parts by number."""
        try:
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.name)
            found = [upload for page in pages for upload in page.get("Uploads", ()) if upload["Key"] == self.name]
            if not found:
                return None
            upload_id = max(found, key=lambda upload: upload["Initiated"])["UploadId"]
            return self._parts_of(upload_id)
        except ClientError as error:
            if error_code(error) not in _NO_LOOKING:
                raise
            return None

    def _parts_of(self, upload_id: str) -> tuple[str, dict[int, PartTypeDef]] | None:
        """None for an upload that was begun with other checksums: it takes no parts with ours."""
        parts: dict[int, PartTypeDef] = {}
        ours = self._checksums().get("ChecksumAlgorithm")
        for page in self.client.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=self.name, UploadId=upload_id
        ):
            if page.get("ChecksumAlgorithm", ours) != ours:
                return None
            parts |= {part["PartNumber"]: part for part in page.get("Parts", ())}
        return upload_id, parts

    def _bring(self, upload_id: str, there: dict[int, PartTypeDef], one: _Slice) -> CompletedPartTypeDef:
        """Send one part, unless the server has it."""
        part = there.get(one.number)
        if part is not None and _fits(part, one):
            return _completed(one.number, part["ETag"], part.get("ChecksumCRC32"))
        with one.open() as body:
            answer = self.client.upload_part(
                Bucket=self.bucket, Key=self.name, UploadId=upload_id, PartNumber=one.number, Body=body
            )
        self.num_parts_sent += 1
        return _completed(one.number, answer["ETag"], answer.get("ChecksumCRC32"))

    def _is_there(self) -> bool:
        """Whether the object is this file, sent in these parts: the server's ETag is made of theirs."""
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=self.name)["ETag"].strip('"')
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise
            return False
        slices = self._slices()
        if not found.endswith(f"-{len(slices)}"):
            return False
        digests = b"".join(in_parallel(_Slice.md5, slices, NUM_PARTS_AT_ONCE))
        return found == f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(slices)}"


def sends_checksums(client: S3Client) -> bool:
    """Whether boto3 adds a checksum (CRC32) to all that it sends; some older servers do not understand that."""
    calculation = client.meta.config.request_checksum_calculation  # type: ignore[attr-defined] # not in the stubs
    return bool(calculation == "when_supported")


def discard_uploads(client: S3Client, bucket: str, name_prefix: str) -> None:
    """Abort what was begun and not ended to names that begin so.

    Nothing where the server lists no uploads, or not to these credentials: they only cost space there.
    """
    try:
        pages = list(client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=name_prefix))
    except ClientError as error:
        if error_code(error) not in _NO_LOOKING:
            raise
        return
    for upload in (upload for page in pages for upload in page.get("Uploads", ())):
        try:
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise


def _fits(part: PartTypeDef, one: _Slice) -> bool:
    """Whether a part on the server has the bytes of the file, as far as its checksums prove it."""
    if part["Size"] != one.size_bytes:
        return False
    return part["ETag"].strip('"') == one.md5().hex() or part.get("ChecksumCRC32") == one.crc32()


def _completed(number: int, etag: str, crc32: str | None) -> CompletedPartTypeDef:
    part: CompletedPartTypeDef = {"PartNumber": number, "ETag": etag}
    if crc32 is not None:
        part["ChecksumCRC32"] = crc32
    return part

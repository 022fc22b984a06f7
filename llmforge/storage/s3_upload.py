"""One file to one object of S3, whole or in parts, in place of another or of none.

In: a client, a file, the name of its object. Out: the object, or an exception of boto3 or of the system, or
`ExistsError`. A write that may replace nothing looks first and then names the condition: not every server knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from llmforge.storage.s3_errors import error_code
from llmforge.storage.s3_multipart import PART_BYTES, Condition, MultipartUpload
from llmforge.storage.types import ExistsError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_COMPARED_BYTES = 1 << 20
_IF_NEW: Condition = {"IfNoneMatch": "*"}
_TAKEN = frozenset({"PreconditionFailed", "412"})
_NO_CONDITIONS = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405", "InvalidArgument", "InvalidRequest"})
_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})


@dataclass
class Upload:
    """One try to store a file."""

    client: S3Client
    bucket: str
    name: str
    uri: str
    """Of the object, for the user."""
    source: Path
    size_bytes: int
    _parts: MultipartUpload = field(init=False)

    def __post_init__(self) -> None:
        self._parts = MultipartUpload(self.client, self.bucket, self.name, self.source, self.size_bytes)

    @property
    def made_progress(self) -> bool:
        """Whether the next try finds something on the server that this one has brought there."""
        return self._parts.num_parts_sent > 0

    def run(self, *, replace: bool) -> None:
        if replace:
            self._send({})
        elif not self._is_there():
            self._send_new()

    def _send_new(self) -> None:
        try:
            self._send(_IF_NEW)
        except ClientError as error:
            code = error_code(error)
            if code in _NO_CONDITIONS:
                self._send({})
            # A rival was faster, or this is the second try of a write whose answer was lost.
            elif code not in _TAKEN or not self._is_there():
                raise

    def _send(self, condition: Condition) -> None:
        if self.size_bytes < PART_BYTES:
            with self.source.open("rb") as body:
                self.client.put_object(Bucket=self.bucket, Key=self.name, Body=body, **condition)
        else:
            self._parts.run(condition)

    def _is_there(self) -> bool:
        """Whether the object has the bytes of the file already; raises `ExistsError` when it has others."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.name)
        except ClientError as error:
            if error_code(error) not in _MISSING:
                raise
            return False
        is_same = answer["ContentLength"] == self.size_bytes
        with answer["Body"] as stored, self.source.open("rb") as file:
            while is_same and (data := file.read(_COMPARED_BYTES)):
                is_same = stored.read(len(data)) == data
        if not is_same:
            raise ExistsError.of(self.uri, self.source)
        return True

"""The S3 server of the tests, killed and started again behind the proxy while clients are at work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.chaos_proxy import ChaosProxy
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow

PART_BYTES = 5 << 20
BUCKET = "kept"


@pytest.fixture
def server(s3_server_bin: Path, tmp_path: Path) -> Iterator[S3Server]:
    """One of its own, which the test may kill."""
    server = S3Server(s3_server_bin, tmp_path / "s3").start()
    yield server
    server.stop()


@pytest.fixture
def client(server: S3Server) -> Iterator[S3Client]:
    """Through the proxy, and without tries of its own."""
    session = Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
    with ChaosProxy(server.port).running() as proxy:
        client = session.client("s3", endpoint_url=proxy.url, config=Config(retries={"total_max_attempts": 1}))
        client.create_bucket(Bucket=BUCKET)
        yield client
        client.close()


def test_what_was_stored_outlives_the_server(server: S3Server, client: S3Client) -> None:
    """Killed twice while objects are written: each that was answered is there, and the upload in parts goes on."""
    first_part, second_part = os.urandom(PART_BYTES), b"the rest"
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
    tags = [client.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=1, Body=first_part)["ETag"]]
    stored: set[str] = set()
    is_enough = threading.Event()

    def write() -> None:
        number = 0
        while not is_enough.is_set():
            try:
                client.put_object(Bucket=BUCKET, Key=f"object-{number:04d}", Body=str(number).encode() * 1000)
                stored.add(f"object-{number:04d}")
            except (BotoCoreError, ClientError):  # while it is down
                is_enough.wait(0.05)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2):
        num_stored = len(stored)
        while len(stored) < num_stored + 3:
            is_enough.wait(0.01)
        server.stop(signal.SIGKILL)
        server.start()
    is_enough.set()
    writer.join()
    for key in stored:
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert body == str(int(key.removeprefix("object-"))).encode() * 1000
    tags.append(client.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=2, Body=second_part)["ETag"])
    client.complete_multipart_upload(
        Bucket=BUCKET,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]},
    )
    assert client.get_object(Bucket=BUCKET, Key="parts")["Body"].read() == first_part + second_part

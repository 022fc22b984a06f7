"""Uploads of large files to a real S3 server: speed and memory of ours beside boto3's own and pyarrow's.

    PYTHONPATH=. python benchmarks/s3_uploads.py .venv-s3/bin

The folder has the programs of the server that the tests use; it is started on this machine, so it takes its share of
the processors. A checkpoint's folder of two files of random bytes is uploaded by one client after the other, in each
repetition anew, each time in a new process that has made one small request before. Medians over the repetitions, and
the median of the ratios to boto3 in the same repetition.

llmforge             `Storage.upload` of both files at once, as a checkpoint's are
llmforge, checksums  `upload_files`, which takes the SHA-256 of each file before
boto3                `upload_file` of both files at once, with parts of 32 MiB, four at once
pyarrow              `copy_files` of the folder, which is what Ray Train calls
"""

import argparse
import importlib
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

from llmforge.storage.base import open_storage
from llmforge.storage.manifest import upload_files
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

BUCKET = "uploads"
FILES_AT_ONCE = 2
TRANSFER_CONFIG = TransferConfig(
    multipart_threshold=32 << 20,
    multipart_chunksize=32 << 20,
    max_concurrency=4,
    preferred_transfer_client="classic",
)


@dataclass(frozen=True)
class Measured:
    """One upload of the folder."""

    seconds: float
    peak_bytes: int
    """The most memory that the process ever had."""
    added_bytes: int
    """By how much the upload raised it."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path, help="folder with the programs of OpenStack Swift")
    parser.add_argument("--mib", type=int, default=512, help="of both files together")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "files")
        folder.mkdir()
        for number in range(FILES_AT_ONCE):
            write_random(folder / f"part-{number}", (arguments.mib << 20) // FILES_AT_ONCE)
        server = S3Server(arguments.server, Path(scratch, "server")).start()
        try:
            table = measure_all(folder, server, arguments.repeats)
        finally:
            server.stop()
    print(f"{arguments.mib} MiB in {FILES_AT_ONCE} files, {arguments.repeats} repetitions, {os.cpu_count()} processors")
    for name, runs in table.items():
        seconds = statistics.median(run.seconds for run in runs)
        ratio = statistics.median(b.seconds / run.seconds for b, run in zip(table["boto3"], runs, strict=True))
        peak, added = (max(run.peak_bytes for run in runs) >> 20, max(run.added_bytes for run in runs) >> 20)
        speed = arguments.mib * 2**20 / seconds / 1e6
        print(
            f"{name:<22}{speed:>7.0f} MB/s, {ratio:>5.2f} of boto3, {peak:>5} MiB at the most, {added:>5} of the upload"
        )


def measure_all(folder: Path, server: S3Server, repeats: int) -> dict[str, list[Measured]]:
    """By the name of the client, one for each repetition."""
    os.environ |= {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    table: dict[str, list[Measured]] = {name: [] for name in CLIENTS}
    for _ in range(repeats):
        for name, runs in table.items():
            prefix = secrets.token_hex(4)
            command = [sys.executable, __file__, "--one", name, str(folder), prefix]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(Measured(**json.loads(output)))
            for file in folder.iterdir():
                key = f"{prefix}/{file.name}"
                if client.head_object(Bucket=BUCKET, Key=key)["ContentLength"] != file.stat().st_size:
                    sys.exit(f"{name}: {key} was cut")
                client.delete_object(Bucket=BUCKET, Key=key)
    return table


def one(name: str, folder: Path, prefix: str) -> None:
    """One upload in this process, as JSON on stdout."""
    upload = CLIENTS[name](folder, prefix)
    before = peak_bytes()
    started = time.perf_counter()
    upload()
    seconds = time.perf_counter() - started
    print(json.dumps(asdict(Measured(seconds, peak_bytes(), peak_bytes() - before))))


def llmforge_client(folder: Path, prefix: str) -> Callable[[], None]:
    """Ours, without checksums of whole files."""
    storage = open_storage(f"s3://{BUCKET}/{prefix}")
    storage.list()
    return lambda: in_threads(lambda file: storage.upload(file, file.name), folder)


def llmforge_checksums(folder: Path, prefix: str) -> Callable[[], None]:
    """Ours, as a checkpoint is uploaded."""
    storage = open_storage(f"s3://{BUCKET}")
    storage.list(prefix)

    def upload() -> None:
        upload_files(storage, prefix, folder)

    return upload


def boto3_client(folder: Path, prefix: str) -> Callable[[], None]:
    """Its own transfers of files, with the settings that were found to be the best."""
    client = boto3.client("s3")
    client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)

    def upload(file: Path) -> None:
        client.upload_file(str(file), BUCKET, f"{prefix}/{file.name}", Config=TRANSFER_CONFIG)

    return lambda: in_threads(upload, folder)


def pyarrow_client(folder: Path, prefix: str) -> Callable[[], None]:
    """The copy of a folder, eight files and their parts at once."""
    library = importlib.import_module("pyarrow.fs")  # here, so that its memory counts in its own process only
    filesystem = library.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region=REGION)
    filesystem.get_file_info(library.FileSelector(BUCKET))
    local, target = library.LocalFileSystem(), f"{BUCKET}/{prefix}"

    def copy() -> None:
        library.copy_files(str(folder), target, source_filesystem=local, destination_filesystem=filesystem)

    return copy


CLIENTS: dict[str, Callable[[Path, str], Callable[[], None]]] = {
    "llmforge": llmforge_client,
    "llmforge, checksums": llmforge_checksums,
    "boto3": boto3_client,
    "pyarrow": pyarrow_client,
}


def in_threads(upload: Callable[[Path], None], folder: Path) -> None:
    """All files of the folder, each in a thread of its own."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        list(pool.map(upload, folder.iterdir()))


def write_random(file: Path, num_bytes: int) -> None:
    """Bytes that nothing on the way makes smaller."""
    with file.open("wb") as target:
        for _ in range(num_bytes >> 20):
            target.write(os.urandom(1 << 20))


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        main()

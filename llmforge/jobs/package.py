"""The files of a job as one package, which Ray unpacks wherever the job runs.

In: files by their names in the package. Out: a zip file, named by what is in it, so that the same files are sent once.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from llmforge.errors import ClusterError
from llmforge.jobs.ray_api import MAX_PACKAGE_BYTES
from llmforge.metrics.summary import bytes_text

_CHUNK_BYTES = 1 << 20
_NUM_NAMED_FILES = 3
_NUM_KEPT_PACKAGES = 20


@dataclass(frozen=True)
class Package:
    """A zip file."""

    name: str
    """As Ray wants it, with the hash of the names and bytes of the files."""
    content: bytes

    @property
    def uri(self) -> str:
        """How a job names it."""
        return f"gcs://{self.name}"


def pack(job_text: str, files: Mapping[str, Path], max_bytes: int = MAX_PACKAGE_BYTES) -> Package:
    """The job file, as `job.yaml`, and the files. Raises `ClusterError` where they are more than Ray takes."""
    packer = _Packer(max_bytes)
    packer.add("job.yaml", io.BytesIO(job_text.encode()))
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            packer.add(name, file)
        if packer.is_full:
            break
    content = packer.finish()
    if packer.is_full:
        raise _too_large(files, max_bytes)
    return Package(f"_ray_pkg_{packer.digest.hexdigest()[:40]}.zip", content)


def keep(package: Package, folder: Path) -> None:
    """Keep a package for `llmforge resume`, since the cluster forgets it with the job; the oldest make room."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{package.name}.{os.getpid()}"
    partial.write_bytes(package.content)
    partial.replace(folder / package.name)
    kept = sorted(folder.glob("_ray_pkg_*.zip"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-_NUM_KEPT_PACKAGES]:
        path.unlink(missing_ok=True)


def find_kept(name: str, folder: Path) -> Package | None:
    """A package that was kept."""
    path = folder / name
    return Package(name, path.read_bytes()) if path.is_file() else None


class _Packer:
    """A zip file in memory that is given up when it gets too large."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = io.BytesIO()
        self._archive = ZipFile(self._buffer, "w", ZIP_DEFLATED)
        self.digest = hashlib.sha256()
        """Of the names and bytes so far."""

    @property
    def is_full(self) -> bool:
        """Whether it is larger than it may be."""
        return self._buffer.tell() >= self._max_bytes

    def add(self, name: str, file: BinaryIO) -> None:
        """Add a file; only a part of it where there is no room."""
        entry = ZipInfo(name)  # of a fixed date, so that equal files make equal packages
        entry.compress_type = ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        content = hashlib.sha256()
        with self._archive.open(entry, "w", force_zip64=True) as target:
            while not self.is_full and (chunk := file.read(_CHUNK_BYTES)):
                content.update(chunk)
                target.write(chunk)
        self.digest.update(f"{len(name)}:{name}".encode() + content.digest())

    def finish(self) -> bytes:
        """The zip file."""
        self._archive.close()
        return self._buffer.getvalue()


def _too_large(files: Mapping[str, Path], max_bytes: int) -> ClusterError:
    sizes = sorted(((path.stat().st_size, path) for path in files.values()), reverse=True)
    total = bytes_text(sum(size for size, _ in sizes))
    largest = ", ".join(f"{path} ({bytes_text(size)})" for size, path in sizes[:_NUM_NAMED_FILES])
    return ClusterError(
        f"the {len(files)} local files of the job are too large to be sent with it: {total} before compression, the"
        f" largest {largest}; Ray takes less than {bytes_text(max_bytes)} after it. Put them"
        " where the cluster can read them: s3://, the Hugging Face hub, or a folder that all nodes see (--cluster-path)"
    )

"""Committed folders: files, and a `manifest.json` with the size and SHA-256 of each, written last.

A folder without its manifest does not exist for any reader, so one that was cut short while being written or removed is
never seen; bytes that changed since are found when the folder is fetched. One writer a prefix: whoever can have rivals
puts a name of its own into the prefix. What the files mean is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from llmforge.config.base import first_problem
from llmforge.errors import StorageError
from llmforge.storage import files
from llmforge.storage.base import NotFoundError, Storage, read_bytes, write_bytes
from llmforge.storage.local import LocalStorage
from llmforge.storage.parallel import in_parallel
from llmforge.storage.types import DamagedError
from llmforge.storage.uri import check_key, is_partial, join_key, join_uri

MANIFEST_NAME = "manifest.json"

_NUM_FILES_AT_ONCE = 2
"""As fast as more, at less memory: each file is itself sent in several parts at once."""


class FileRecord(BaseModel):
    """One file of a committed folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: Annotated[str, AfterValidator(check_key)]
    """Relative posix path inside the folder."""
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, file: Path, path: str) -> FileRecord:
        """The record of a local file that is to stand at `path`."""
        return cls(path=path, size_bytes=file.stat().st_size, sha256=files.sha256_of(file))


class Manifest(BaseModel):
    """What a committed folder holds; as JSON, its commit record."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="null")

    format_version: Literal[1] = 1
    files: tuple[FileRecord, ...]
    """Sorted by path, each path once."""
    metadata: dict[str, JsonValue] = {}
    """The writer's own; numbers that are not finite are stored as null."""

    @field_validator("files")
    @classmethod
    def _paths_differ(cls, records: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
        if len({record.path for record in records}) < len(records):
            raise ValueError("a path stands in it twice")
        return records

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(record.size_bytes for record in self.files)


class AlreadyCommittedError(StorageError):
    """The folder is complete already, with other content."""


def commit_folder(storage: Storage, prefix: str, local_folder: Path, metadata: Mapping[str, JsonValue]) -> Manifest:
    """Upload all files of a local folder, then their manifest; the folder exists from that moment on.

    A prefix that holds the same files already is left as it is, with its metadata. Raises `AlreadyCommittedError` when
    they are other ones: a committed folder never changes; `remove_folder` comes first.
    """
    existing = read_manifest(storage, prefix)
    if existing is None:
        records = upload_files(storage, prefix, local_folder)
        return write_manifest(storage, join_key(prefix, MANIFEST_NAME), records, metadata)
    if existing.files != folder_records(local_folder):
        raise AlreadyCommittedError(
            f"{join_uri(storage.root_uri, prefix)}: holds a complete folder with other files than {local_folder}."
            " Use that one, or remove it first."
        )
    return existing


def folder_records(local_folder: Path) -> tuple[FileRecord, ...]:
    """The records of all files of a local folder, sorted by path."""

    def record_of(item: tuple[Path, str]) -> FileRecord:
        file, path = item
        with files.explained("read the file", file):
            return FileRecord.of(file, path)

    return in_parallel(record_of, _files_of(local_folder), _NUM_FILES_AT_ONCE)


def upload_files(
    storage: Storage,
    prefix: str,
    local_folder: Path,
    *,
    stored: Collection[FileRecord] = (),
    on_upload: Callable[[FileRecord], None] = lambda record: None,
) -> tuple[FileRecord, ...]:
    """Upload all files of a local folder, without a manifest; their records, sorted by path.

    Those in `stored` are there already and are not sent. `on_upload` is told each other one as soon as it is there; it
    may be called by several threads at once.
    """

    def upload(item: tuple[Path, str]) -> FileRecord:
        file, path = item
        with files.explained("read the file", file):
            record = FileRecord.of(file, path)
        if record not in stored:
            storage.upload(file, join_key(prefix, path))
            on_upload(record)
        return record

    return in_parallel(upload, _files_of(local_folder), _NUM_FILES_AT_ONCE)


def write_manifest(
    storage: Storage,
    key: str,
    records: Iterable[FileRecord],
    metadata: Mapping[str, JsonValue],
    *,
    replace: bool = True,
) -> Manifest:
    """Store a manifest, with `replace` as in `Storage.upload`; returns it as any reader will see it."""
    manifest = Manifest(files=tuple(sorted(records, key=lambda record: record.path)), metadata=dict(metadata))
    data = manifest.model_dump_json(indent=1).encode()
    write_bytes(storage, key, data, replace=replace)
    return Manifest.model_validate_json(data)


def read_manifest(storage: Storage, prefix: str, name: str = MANIFEST_NAME) -> Manifest | None:
    """The manifest of a committed folder, None when there is none. Raises `DamagedError` when it cannot be read."""
    key = join_key(prefix, name)
    try:
        data = read_bytes(storage, key)
    except NotFoundError:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise DamagedError(
            f"{join_uri(storage.root_uri, key)}: not a manifest of format 1: {first_problem(error)}. The file was "
            "changed after it was written, or a newer llmforge wrote it: use another folder, or remove this one."
        ) from error


def fetch_folder(
    storage: Storage, prefix: str, manifest: Manifest, target: Path, paths: Collection[str] | None = None
) -> None:
    """Bring the files of a committed folder (`paths`: only these) to a local one, each verified before it has its name.

    Files that are there with the right content are kept. Raises `DamagedError` that names every missing, cut or changed
    file, and `StorageError` for a path that the manifest does not have.
    """

    def fetch(record: FileRecord) -> str | None:
        return _fetch_file(storage, join_key(prefix, record.path), record, target / record.path)

    _check_files(join_uri(storage.root_uri, prefix), manifest, paths, fetch)


def local_folder(
    storage: Storage, prefix: str, manifest: Manifest, target: Path, paths: Collection[str] | None = None
) -> Path:
    """A local folder in which the files (`paths`: only these) stand, verified; errors as in `fetch_folder`.

    Where the storage is a folder of this machine that is the committed folder itself; else the files come to `target`.
    """
    if not isinstance(storage, LocalStorage):
        fetch_folder(storage, prefix, manifest, target, paths)
        return target
    folder = storage.root / prefix

    def verify(record: FileRecord) -> str | None:
        return problem_of(folder / record.path, record)

    _check_files(str(folder), manifest, paths, verify)
    return folder


def check_folder(storage: Storage, prefix: str, manifest: Manifest, paths: Collection[str] | None = None) -> None:
    """See that the files of a committed folder (`paths`: only these) are there and have their sizes; those of this
    machine are read whole.

    Raises `DamagedError` that names every wrong file.
    """
    if isinstance(storage, LocalStorage):
        local_folder(storage, prefix, manifest, storage.root / prefix, paths)
        return
    sizes = {file.key: file.size_bytes for file in storage.list(prefix)}

    def problem_of(record: FileRecord) -> str | None:
        found = sizes.get(join_key(prefix, record.path))
        if found is None:
            return f"{record.path}: missing"
        return None if found == record.size_bytes else _other_size(record, found)

    _check_files(join_uri(storage.root_uri, prefix), manifest, paths, problem_of)


def remove_folder(storage: Storage, prefix: str) -> None:
    """Remove a folder, its manifest first, so that what is left when it is cut short exists for no reader."""
    storage.delete(join_key(prefix, MANIFEST_NAME))
    for file in storage.list(prefix):
        storage.delete(file.key)


def _check_files(
    folder_uri: str, manifest: Manifest, paths: Collection[str] | None, problem_of: Callable[[FileRecord], str | None]
) -> None:
    """Raise one `DamagedError` for all files that `problem_of` finds wrong."""
    unknown = sorted(set(paths or ()) - {record.path for record in manifest.files})
    if unknown:
        raise StorageError(
            f"{folder_uri}: has no {', '.join(unknown)}; it holds {', '.join(record.path for record in manifest.files)}"
        )
    wanted = [record for record in manifest.files if paths is None or record.path in paths]
    problems = [problem for problem in in_parallel(problem_of, wanted, _NUM_FILES_AT_ONCE) if problem is not None]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DamagedError(
            f"{folder_uri}: {len(problems)} of {len(wanted)} files are not what was written:\n{lines}\n"
            "Its content cannot be trusted: use another one, or make it again."
        )


def problem_of(file: Path, record: FileRecord) -> str | None:
    """What is wrong with a local file, if anything: one line. Reads it whole."""
    if not file.is_file():
        return f"{record.path}: missing"
    try:
        _verify(file, record)
    except DamagedError as error:
        return str(error)
    return None


def _fetch_file(storage: Storage, key: str, record: FileRecord, target: Path) -> str | None:
    """Bring one file into its place; what is wrong with it, if anything."""
    with files.explained("write the file", target):
        if target.is_file() and FileRecord.of(target, record.path) == record:
            return None
        try:
            with files.atomic_target(target) as partial:
                storage.download(key, partial)
                _verify(partial, record)
        except NotFoundError:
            return f"{record.path}: missing"
        except DamagedError as error:
            return str(error)
    return None


def _verify(file: Path, record: FileRecord) -> None:
    found = FileRecord.of(file, record.path)
    if found.size_bytes != record.size_bytes:
        raise DamagedError(_other_size(record, found.size_bytes))
    if found != record:
        raise DamagedError(f"{record.path}: SHA-256 {found.sha256}, not the {record.sha256} written")


def _other_size(record: FileRecord, size_bytes: int) -> str:
    return f"{record.path}: {size_bytes} bytes, not the {record.size_bytes} bytes written"


def _files_of(folder: Path) -> list[tuple[Path, str]]:
    """All files of a local folder with their relative paths, sorted by them."""
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder to upload. Check the path.")
    found = [(path, path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()]
    if any(path == MANIFEST_NAME for _, path in found):
        raise StorageError(
            f"{folder / MANIFEST_NAME}: this name is kept for the commit record, which is written after the files."
            " Remove the file, or give it another name."
        )
    return sorted(((file, path) for file, path in found if not is_partial(path)), key=lambda item: item[1])

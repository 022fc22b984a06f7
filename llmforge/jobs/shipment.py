"""Which local files a job needs, and where they stand in the package that is sent.

In: a job whose files are there. Out: a `Shipment`: the files by their names in the package, and the `key=value` words
that point the job to those that have another address there. What lies in an object store, on the hub or below a path of
the cluster's own stays where it is. Files below the working folder keep their relative names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from llmforge.config.data import DataSource
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig
from llmforge.config.model import HubModel
from llmforge.config.training import DeepSpeedFile
from llmforge.dataset.file_names import expand_local, has_glob
from llmforge.dataset.hub import is_hub_dataset
from llmforge.models.file_names import ADAPTER_FILES, SMALL_FILES, WEIGHT_FILES
from llmforge.storage.uri import is_s3, local_path

FOLDER = "shipped"
"""In the package: files from elsewhere than the working folder."""


@dataclass
class Shipment:
    """What goes along with a job."""

    files: dict[str, Path] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    num_places: int = 0
    """Folders below `FOLDER`."""


@dataclass(frozen=True)
class _Reference:
    """An address in a job, and the local files behind it."""

    key: KeyPath
    given: str
    list_files: Callable[[], list[Path]]


def ship(job: JobConfig, cluster_paths: Sequence[str] = ()) -> Shipment:
    """Everything that a job names on this machine; `cluster_paths` are folders that only the cluster has."""
    shipment = Shipment()
    for reference in _references(job):
        if not is_on_cluster(reference.given, cluster_paths):
            _add(shipment, reference)
    return shipment


def is_on_cluster(address: str, cluster_paths: Sequence[str]) -> bool:
    """Whether an address, or a message that begins with one, is of a folder that only the cluster has."""
    return any(f"{address}/".startswith(f"{path.rstrip('/')}/") for path in cluster_paths)


def _references(job: JobConfig) -> Iterator[_Reference]:
    for key, given, sources in (
        ("train_path", job.train_path, job.train_sources),
        ("valid_path", job.valid_path, job.valid_sources),
    ):
        for index, source in enumerate(sources):
            entry = given[index] if isinstance(given, tuple) else given
            place: KeyPath = (key, index) if isinstance(given, tuple) else (key,)
            is_hub = is_hub_dataset(source.path, job.dataset.load_kwargs)
            list_files = partial(_data_files, source.path, is_hub)
            yield _Reference((*place, "path") if isinstance(entry, DataSource) else place, source.path, list_files)
    yield from _model_references(job)
    if isinstance(job.deepspeed, DeepSpeedFile):
        yield _one_file(("deepspeed", "config_path"), job.deepspeed.config_path)
    if job.evaluation is not None and isinstance(job.evaluation.prompts, str):
        yield _one_file(("evaluation", "prompts"), job.evaluation.prompts)


def _model_references(job: JobConfig) -> Iterator[_Reference]:
    has_own_weights = job.initial_base_model_ckpt_path is None
    for key, model, patterns in (
        ("model_id", job.model_id, SMALL_FILES + (WEIGHT_FILES if has_own_weights else [])),
        ("initial_base_model_ckpt_path", job.initial_base_model_ckpt_path, SMALL_FILES + WEIGHT_FILES),
        ("initial_adapter_model_ckpt_path", job.initial_adapter_model_ckpt_path, ADAPTER_FILES),
    ):
        given = model.repo_id if isinstance(model, HubModel) else model
        if given is not None and not is_s3(given) and local_path(given).is_dir():
            list_files = partial(_model_files, local_path(given), patterns)
            yield _Reference((key, "repo_id") if isinstance(model, HubModel) else (key,), given, list_files)


def _model_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in patterns)]


def _data_files(address: str, is_hub: bool) -> list[Path]:
    if is_s3(address) or address.startswith("hf://"):
        return []
    if is_hub:
        return [path for path in local_path(address).rglob("*") if path.is_file()]
    return [local_path(file) for file in expand_local(address)]


def _one_file(key: KeyPath, given: str) -> _Reference:
    return _Reference(key, given, lambda: [] if is_s3(given) else [local_path(given)])


def _add(shipment: Shipment, reference: _Reference) -> None:
    given, files = reference.given, reference.list_files()
    if not files:
        return
    if not given.startswith(("/", "~", "file:")) and ".." not in Path(given).parts:
        shipment.files |= {path.relative_to(Path.cwd()).as_posix(): path for path in files}
        return
    shipment.num_places += 1
    place = f"{FOLDER}/{shipment.num_places}"
    plain = local_path(given)
    root = _root(plain)
    shipment.files |= {f"{place}/{path.relative_to(root).as_posix()}": path for path in files}
    address = json.dumps(f"{place}/{plain.relative_to(root).as_posix()}")
    shipment.overrides.append(f"{'.'.join(map(str, reference.key))}={address}")


def _root(plain: Path) -> Path:
    """The folder around a file or folder, or around all that a glob may match."""
    if plain.exists():
        return plain.parent
    fixed = [part for part in plain.parents if not has_glob(str(part))]
    return fixed[0]

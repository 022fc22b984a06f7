"""Hugging Face datasets, loaded by the `datasets` library: those of the hub, and folders that the library knows.

In: an address as it stands in a job, and `dataset.load_kwargs`. Out: one Parquet file below the job's `output_dir`,
where every node of the cluster can read it. Only the process that loads one needs the network and the library's own
cache (`HF_HOME`). The library is imported then and not before, since that takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from llmforge.dataset.file_names import find_kind, has_glob
from llmforge.errors import DataError
from llmforge.storage.files import explained
from llmforge.storage.uri import join_key, join_uri, local_path

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from llmforge.storage.base import Storage

logger = logging.getLogger(__name__)

SplitRole = Literal["train", "validation"]
"""What a source is for; also the name of the split that is taken where the job names none."""

ROW_GROUP_BYTES = 8 << 20

_SCHEME = "hf://datasets/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NO_NAME = re.compile(r"[^A-Za-z0-9._]+")
_LONG_DETAILS = re.compile(r"\(.{80,}\)")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]+[0-9]?")
_SAVED_DATASET, _SAVED_DICT = "state.json", "dataset_dict.json"
_MEDIA = ("Audio", "Image", "Mesh", "Nifti", "Pdf", "Video")
_NO_TOKEN = "secrets do not stand in a job; set HF_TOKEN in the environment of the machine that starts it"
_REFUSED = {
    "path": "the dataset is named by train_path or valid_path",
    "streaming": "rows that are streamed have no number to be found by again; take a part by split, as in train[:10%]",
    "trust_remote_code": "code of a dataset is never run",
    "token": _NO_TOKEN,
    "use_auth_token": _NO_TOKEN,
    "storage_options": "secrets do not stand in a job; name the files themselves by an s3:// address in train_path",
    "features": "types cannot be given in YAML; name columns by dataset.columns",
    "download_config": "such an object cannot be given in YAML",
}
_NO_NETWORK = (
    "check the path if a folder is meant, else the network of this machine and HF_HUB_OFFLINE; or write the dataset"
    " with `save_to_disk` where there is a network, and name that folder"
)
_NOT_FOUND = (
    "check the name, and that a folder of this name is visible from this machine; a private or gated dataset needs"
    " access granted on its page and HF_TOKEN in the environment"
)
_SCRIPT = (
    "code of a dataset is never run: set dataset.load_kwargs.revision to refs/convert/parquet, where the hub keeps most"
    " of them as Parquet"
)
_WRONG_ARGUMENTS = "correct dataset.load_kwargs (name, split, data_dir, data_files, revision)"
_BAD_FILES = "mend its files"
_BAD_FOLDER = "write the folder anew with `save_to_disk`"
_NO_ROWS = (StopIteration, IndexError)
"""What the library raises where there are no rows."""
_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (ConnectionError, _NO_NETWORK),
    (FileNotFoundError, _NOT_FOUND),
    (RuntimeError, _SCRIPT),
    (ValueError, _WRONG_ARGUMENTS),
)


def is_hub_dataset(path: str, load_kwargs: Mapping[str, object] | None) -> bool:
    """Whether a source is loaded by the `datasets` library, by its address and what stands there; nothing is imported.

    It is where the address is `hf://...`, a folder of `save_to_disk`, any folder where there are `load_kwargs`, or has
    the form `owner/name` and nothing of that name is here.
    """
    if "://" in path:
        return path.startswith("hf://") or (path.startswith("file://") and _is_known_folder(path, load_kwargs))
    return _is_known_folder(path, load_kwargs) or (_is_hub_id(path) and not local_path(path).exists())


def check_load_kwargs(load_kwargs: Mapping[str, object] | None) -> None:
    """Raises `DataError` for arguments that a job may not give."""
    kwargs = load_kwargs or {}
    for name, why in _REFUSED.items():
        if kwargs.get(name) not in (None, False):
            raise DataError(f"dataset.load_kwargs.{name}: not allowed: {why}; remove it")
    split = kwargs.get("split")
    splits = [split] if not isinstance(split, Mapping) else [split.get(role) for role in ("train", "validation")]
    if not all(name is None or isinstance(name, str) for name in splits) or splits == [None, None]:
        raise DataError(
            "dataset.load_kwargs.split: allowed is the name of a split, such as train_sft or train[:10%], or"
            " {train: train_sft, validation: test_sft} for train_path and valid_path; correct it"
        )


def load_hub_dataset(
    path: str, load_kwargs: Mapping[str, object] | None, *, default_split: SplitRole, storage: Storage, prefix: str
) -> str:
    """The address of one Parquet file with the rows of a dataset, in the folder `prefix` of `storage`; written once.

    Columns of images, sound and the like are left out; labels of classes stay numbers. Raises `DataError` for a dataset
    that cannot be loaded, and `StorageError` where the file cannot be written.
    """
    check_load_kwargs(load_kwargs)
    kwargs = {name: value for name, value in (load_kwargs or {}).items() if name not in _REFUSED}
    split = _split_of(kwargs.pop("split", None), default_split)
    library = import_module("datasets")
    # Its bars would be drawn over the display of the job.
    library.disable_progress_bars()
    logger.info("data: loading %s as a Hugging Face dataset", path)
    try:
        dataset = _load(library, path, kwargs, split, default_split)
    except (library.exceptions.DatasetsError, OSError, ValueError, TypeError, RuntimeError, *_NO_ROWS) as error:
        raise _explained(path, error) from error
    if len(dataset) == 0:
        raise DataError(f"{path}: no rows in this split; name another by dataset.load_kwargs.split")
    dataset = _without_media(library, dataset, path)
    key = join_key(prefix, _file_name(path, kwargs, split or default_split, dataset._fingerprint))
    if key not in {file.key for file in storage.list(prefix)}:
        _write(dataset, storage, key)
    return join_uri(storage.root_uri, key)


def _is_known_folder(path: str, load_kwargs: Mapping[str, object] | None) -> bool:
    folder = local_path(path)
    return folder.is_dir() and (load_kwargs is not None or _is_saved(folder))


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_SAVED_DATASET, _SAVED_DICT))


def _is_hub_id(path: str) -> bool:
    if has_glob(path) or _HUB_ID.fullmatch(path) is None:
        return False
    return find_kind(path) is None and _FILE_SUFFIX.fullmatch(PurePosixPath(path).suffix) is None


def _split_of(asked: object, role: SplitRole) -> str | None:
    """The split that the job names for sources of this role; None where it leaves that open."""
    value = asked.get(role) if isinstance(asked, Mapping) else asked
    return None if value is None else str(value)


def _load(library: Any, path: str, kwargs: Mapping[str, object], split: str | None, default_split: str) -> Dataset:
    if path.startswith("hf://"):
        if not path.startswith(_SCHEME) or _HUB_ID.fullmatch(path.removeprefix(_SCHEME)) is None:
            raise DataError(
                f"{path}: not the address of a dataset; write hf://datasets/owner/name, and parts of it by"
                " dataset.load_kwargs (name, revision, data_dir, data_files)"
            )
        return library.load_dataset(path.removeprefix(_SCHEME), split=split or default_split, **kwargs)
    folder = local_path(path)
    if not folder.is_dir():
        return library.load_dataset(path, split=split or default_split, **kwargs)
    if not _is_saved(folder):
        return library.load_dataset(str(folder), split=split or default_split, **kwargs)
    if kwargs:
        raise DataError(
            f"{path}: found {', '.join(kwargs)} in dataset.load_kwargs, allowed is split: a folder of `save_to_disk` is"
            " loaded as it stands; remove the others"
        )
    return _chosen(path, library.load_from_disk(str(folder)), split, default_split)


def _chosen(path: str, saved: Dataset | DatasetDict, split: str | None, default_split: str) -> Dataset:
    """The asked split of what `save_to_disk` wrote; a dataset by itself is taken as it is where none is asked for."""
    if isinstance(saved, dict):
        splits = list(saved)
        split = split or default_split
        if split in saved:
            return saved[split]
    else:
        splits = [] if saved.split is None else [str(saved.split)]
        if split is None or split in splits:
            return saved
    found = f"the splits {', '.join(splits)}" if splits else "a dataset without splits"
    advice = "name one of them by dataset.load_kwargs.split" if splits else "remove dataset.load_kwargs.split"
    raise DataError(f"{path}: no split {split!r}; found {found}; {advice}")


def _explained(path: str, error: Exception) -> DataError:
    """What the library raised, or what it wraps without saying it, in one line."""
    told = error.__cause__ if isinstance(error.__cause__, Exception) else error
    lines = ["no rows in its files"] if isinstance(told, _NO_ROWS) else str(told).splitlines()
    found = _LONG_DETAILS.sub("(...)", next(iter(lines), type(told).__name__))[:300].rstrip(".")
    return DataError(f"{path}: cannot be loaded as a Hugging Face dataset: {found}; {_advice(path, error)}")


def _advice(path: str, error: Exception) -> str:
    if "://" not in path and _is_saved(local_path(path)):
        return _BAD_FOLDER
    if isinstance(error, import_module("pyarrow").ArrowException):
        return _BAD_FILES
    return next((advice for kind, advice in _ADVICE if isinstance(error, kind)), _BAD_FILES)


def _without_media(library: Any, dataset: Dataset, path: str) -> Dataset:
    kinds = tuple(getattr(library.features, name) for name in _MEDIA if hasattr(library.features, name))
    names = [name for name, feature in dataset.features.items() if _holds(feature, kinds)]
    if names:
        logger.info("data: %s: columns without text are left out: %s", path, ", ".join(names))
    return dataset.remove_columns(names)


def _holds(feature: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a feature is, or has inside, one of these kinds."""
    if isinstance(feature, Mapping):
        return any(_holds(inner, kinds) for inner in feature.values())
    if isinstance(feature, list):
        return any(_holds(inner, kinds) for inner in feature)
    return isinstance(feature, kinds) or _holds(getattr(feature, "feature", []), kinds)


def _file_name(path: str, kwargs: Mapping[str, object], split: str, fingerprint: str) -> str:
    """Changes with the rows, and says what they are to people, who see it in messages."""
    told = [path, json.dumps(kwargs, sort_keys=True), split, fingerprint]
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    words = [_NO_NAME.sub("-", word).strip("-.") for word in (PurePosixPath(path).name, split)]
    return "-".join([*(word for word in words if word), f"{digest}.parquet"])


def _write(dataset: Dataset, storage: Storage, key: str) -> None:
    row_bytes = max(1, dataset.data.nbytes // dataset.data.num_rows)
    place = tempfile.gettempdir()
    with explained("use the folder for temporary files", place), tempfile.TemporaryDirectory(dir=place) as folder:
        file = Path(folder, "rows.parquet")
        dataset.to_parquet(str(file), batch_size=max(1, ROW_GROUP_BYTES // row_bytes))
        storage.upload(file, key)

"""What tells the weights of a model from others, without loading them.

In: how a job names a model or an adapter. Out: plain values for a hash.
"""

from fnmatch import fnmatch
from pathlib import Path

from llmforge.config.model import HubModel
from llmforge.models.file_names import ADAPTER_FILES, WEIGHT_FILES
from llmforge.models.folder import model_folder
from llmforge.storage.base import open_storage
from llmforge.storage.cache import fingerprint
from llmforge.storage.uri import is_s3, join_uri

_FILES = ("config.json", *WEIGHT_FILES, *ADAPTER_FILES)


def weights_identity(reference: str | HubModel, cache_folder: Path) -> list[str]:
    """Of a folder, local or in S3, the checksums of its files; of a model of the hub, its revision.

    The checksums of large local files are kept in `cache_folder`. Raises `ModelError` and `StorageError`.
    """
    if isinstance(reference, HubModel) or not (is_s3(reference) or Path(reference).is_dir()):
        snapshot = model_folder(reference, with_weights=False)  # the hub's cache names it by its revision
        return [reference.repo_id if isinstance(reference, HubModel) else reference, snapshot.name]
    storage = open_storage(reference)
    names = sorted(file.key for file in storage.list() if any(fnmatch(file.key, pattern) for pattern in _FILES))
    return [f"{name} {fingerprint(join_uri(storage.root_uri, name), cache_folder).checksum}" for name in names]

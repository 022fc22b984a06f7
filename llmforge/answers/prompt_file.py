"""The bytes of a file of prompts, local or on S3."""

from pathlib import Path

from llmforge.errors import DataError
from llmforge.storage.cache import fetch_to_cache
from llmforge.storage.types import NotFoundError
from llmforge.storage.uri import is_s3, local_path


def read_prompt_file(uri: str, cache_folder: Path) -> bytes:
    """Objects are fetched to `cache_folder` once a version. Raises `DataError` where there is no such file."""
    missing = f"{uri}: no such file; expected a JSONL file with `messages` on every line"
    try:
        path = fetch_to_cache(uri, cache_folder / "prompts") if is_s3(uri) else local_path(uri)
    except NotFoundError as error:
        raise DataError(missing) from error
    if not path.is_file():
        raise DataError(missing)
    return path.read_bytes()

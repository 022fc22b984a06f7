"""A model's folder and what its small files say, without loading a weight.

In: a model reference from a job. Out: a local folder, the text of its tokenizer and its chat template, sizes from
`config.json` and from the headers of the weight files. It needs neither torch nor transformers, so preparing data and
checking a job stay quick.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from llmforge.config.job_memory import ModelSizes
from llmforge.config.model import HubModel
from llmforge.config.model_shape import ModelShape, read_model_shape
from llmforge.errors import ModelError
from llmforge.models.file_names import ADAPTER_FILES, SMALL_FILES, WEIGHT_FILES
from llmforge.prompt.template_import import TokenizerTemplate
from llmforge.storage.cache import fetch_folder_to_cache
from llmforge.storage.uri import is_s3


@dataclass(frozen=True)
class ModelFacts:
    """What a job needs to know of a model before any weight is loaded."""

    context_length: int | None
    """Longest sequence the model was made for, in tokens."""
    hidden_size: int | None
    num_parameters: int | None
    """From the headers of the weight files; None where these are not at hand."""
    shape: ModelShape | None = None
    """None for a family whose layers are not known."""

    @property
    def sizes(self) -> ModelSizes:
        """What a memory plan needs of it."""
        return ModelSizes(self.shape, self.num_parameters, self.hidden_size)


@dataclass(frozen=True)
class ModelFiles:
    """All that is read of a model before its weights."""

    tokenizer_json: str
    template: TokenizerTemplate | None
    """The chat template beside the tokenizer, where there is one."""
    facts: ModelFacts
    eos_token: str | None = None
    """The token that ends a text, where the tokenizer names one."""


def read_model_files(folder: Path) -> ModelFiles:
    """The small files of a model's folder. Raises `ModelError` where one is missing or damaged."""
    return ModelFiles(
        read_tokenizer_json(folder),
        read_tokenizer_template(folder),
        read_model_facts(folder),
        read_eos_token(folder),
    )


def adapter_rank(folder: Path) -> int:
    """The largest rank that a layer of a saved adapter has."""
    config = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def model_folder(reference: str | HubModel, *, with_weights: bool, cache_folder: Path | None = None) -> Path:
    """The local folder of a model: as it stands, or fetched from the hub into its cache (once per node).

    With a `cache_folder` also from S3, once per node too. Raises `ModelError` where there is neither such a folder nor
    such a repository, and `StorageError`.
    """
    patterns = SMALL_FILES + WEIGHT_FILES if with_weights else SMALL_FILES
    if cache_folder is not None and isinstance(reference, str) and is_s3(reference):
        return fetch_folder_to_cache(reference, cache_folder, patterns)
    repo_id, revision = (
        (reference.repo_id, reference.revision) if isinstance(reference, HubModel) else (reference, None)
    )
    if Path(repo_id).is_dir():
        return Path(repo_id)
    if repo_id.startswith((".", "/", "~")) or repo_id.count("/") > 1:
        raise ModelError(f"{repo_id}: no such model folder; check the path, or name a model of the hub as owner/name")
    return _fetch(repo_id, revision, patterns)


def adapter_folder(reference: str | HubModel, cache_folder: Path) -> Path:
    """As `model_folder`, for a LoRA adapter."""
    if isinstance(reference, HubModel) and not Path(reference.repo_id).is_dir():
        return _fetch(reference.repo_id, reference.revision, ADAPTER_FILES)
    return model_folder(reference, with_weights=True, cache_folder=cache_folder)


def _fetch(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{repo_id}: neither a local folder nor to be had from the Hugging Face hub ({error}); "
            "check the name, the network, and for gated models HF_TOKEN in the environment"
        ) from error


def read_tokenizer_json(folder: Path) -> str:
    """The text of `tokenizer.json`, which decides every id. Raises `ModelError` where it is missing or damaged."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no tokenizer.json; llmforge needs the model's fast tokenizer")
    text = path.read_text(encoding="utf-8")
    _parse_object(text, path)
    return text


def read_tokenizer_template(folder: Path) -> TokenizerTemplate | None:
    """The chat template that `transformers` uses by default, with the tokens that it sees; None where there is none.

    Raises `ModelError` where a file is damaged.
    """
    path = folder / "tokenizer_config.json"
    config = _read_object(path)
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        template: object = template_file.read_text(encoding="utf-8")
    else:
        template = _default_template(config.get("chat_template"))
    if template is None:
        return None
    if not isinstance(template, str):
        raise _damaged(path, "expected chat_template to be a text, or a list of {name, template}")
    return TokenizerTemplate(template, tuple(_special_tokens(folder, config).items()))


def read_eos_token(folder: Path) -> str | None:
    """The token that ends a text, as `transformers` has it. Raises `ModelError` where a file is damaged."""
    return _special_tokens(folder, _read_object(folder / "tokenizer_config.json")).get("eos_token")


def _default_template(found: object) -> object:
    """Publishers with several templates give them names."""
    if not isinstance(found, list):
        return found
    named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    return named.get("default")


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Names and texts, as `special_tokens_map` of `transformers` has them, from the tokenizer's configuration."""
    if "added_tokens_decoder" not in config:
        config = config | _read_object(folder / "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    entries |= extra if isinstance(extra, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in entries.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_model_facts(folder: Path) -> ModelFacts:
    """Sizes from `config.json` and the headers of the weight files; loads no weight.

    Raises `ModelError` where one of them is missing or damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json; expected a Hugging Face model folder")
    config = _parse_object(path.read_text(encoding="utf-8"), path)
    text_config = config.get("text_config", config)
    return ModelFacts(
        context_length=text_config.get("max_position_embeddings"),
        hidden_size=text_config.get("hidden_size"),
        num_parameters=_count_parameters(folder),
        shape=read_model_shape(text_config),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing."""
    return _parse_object(path.read_text(encoding="utf-8"), path) if path.is_file() else {}


def _parse_object(text: str, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise _damaged(path, "expected a JSON object")
    return parsed


def _count_parameters(folder: Path) -> int | None:
    """Elements of all tensors in the weight files that `transformers` would load; None where there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _parse_object(index.read_text(encoding="utf-8"), index)["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [folder / "model.safetensors"]
    return sum(map(_elements, paths)) if all(path.is_file() for path in paths) else None


def _elements(path: Path) -> int:
    """Elements of all tensors of a safetensors file, from its header (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > path.stat().st_size:
            raise _damaged(path, "no safetensors file")
        header = _parse_object(file.read(length).decode(errors="replace"), path)
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _damaged(path: Path, found: str) -> ModelError:
    return ModelError(f"{path}: {found}; cut short, or a pointer of Git LFS? Fetch the file again")

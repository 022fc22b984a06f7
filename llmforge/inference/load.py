"""A trained model from wherever it lies: the run's folder, one of its checkpoints, or an exported folder.

In: a URI, local or `s3://`. Out: a `TrainedModel`: base and adapter or full weights on the device, the tokenizer, and
the prompt format that the checkpoint itself holds. Nothing is asked of the user that the run already knows.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import GENERATION_CONFIG_NAME

from llmforge.answers.answer_format import AnswerFormat, end_of_sequence_ids
from llmforge.answers.prompt_maker import PromptMaker
from llmforge.checkpoint.exported import ExportRecord, read_export_record
from llmforge.checkpoint.find import CheckpointAddress, find_checkpoint
from llmforge.checkpoint.names import FOLDER, OPTIMIZER_PREFIX, RESOLVED_JOB_FILE
from llmforge.checkpoint.records import manifest_of
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.classifier import Classifier
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml
from llmforge.config.prompt_format import GenerationConfig as AnswerConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import CheckpointError
from llmforge.inference.classifier_file import answer_config, read_classifier
from llmforge.models.adapter_files import CONFIG_FILE, load_adapter
from llmforge.models.folder import model_folder, read_model_facts, read_tokenizer_json
from llmforge.models.load import DTYPES, Precision, load_base_model, load_tokenizer
from llmforge.storage.base import Storage, join_uri, open_storage
from llmforge.storage.manifest import local_folder
from llmforge.storage.types import DamagedError

EXPORT_FOLDER = "exports"
"""Holds the exported folders of object stores, in the cache of this machine."""


@dataclass(frozen=True)
class TrainedSource:
    """A trained model that was found and whose weights have not been read yet."""

    uri: str
    """Leads to this very model, also once the run has saved a better or later one."""
    job: JobConfig
    """The resolved job that trained it."""
    checkpoint: CheckpointInfo
    fetch: Callable[[], Path]
    """Bring its files to this machine; the folder with them, verified. Raises `LlmforgeError`."""
    fetch_small: Callable[[], Path]
    """As `fetch`, without the weights."""
    cache_folder: Path
    """Where the base model of an adapter comes to, if it lies in an object store."""
    classifier: Classifier | None
    """None for a model that writes text."""
    is_export: bool = False

    @property
    def generation(self) -> AnswerConfig:
        """How its answers are made: as its job says, or one label."""
        return answer_config(self.job, self.classifier)


@dataclass(frozen=True)
class TrainedModel:
    """A model ready to answer."""

    model: PreTrainedModel
    encoder: SegmentTokenizer
    """Text to ids, by the rules of training."""
    decoder: PreTrainedTokenizerFast
    """Ids to text."""
    end_of_sequence_ids: frozenset[int]
    """What ends a text by the base model's own configuration."""
    job: JobConfig
    """The resolved job that trained it."""
    checkpoint: CheckpointInfo
    classifier: Classifier | None = None
    """None for a model that writes text."""

    @property
    def answer_format(self) -> AnswerFormat:
        """How it is asked and read."""
        return AnswerFormat(
            prompt_format=self.job.prompt_format,
            generation=answer_config(self.job, self.classifier),
            encoder=self.encoder,
            decoder=self.decoder,
            end_of_sequence_ids=self.end_of_sequence_ids,
            context_length=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
        )


def load_trained_model(uri: str, checkpoint: str, cache_folder: Path) -> TrainedModel:
    """Load from a run's folder (`checkpoint`: best, latest or a name), a checkpoint's, or an exported one.

    Raises `CheckpointError` where there is no complete checkpoint or a file of it is damaged.
    """
    return load_source(find_trained_model(uri, checkpoint, cache_folder))


def find_trained_model(uri: str, checkpoint: str, cache_folder: Path) -> TrainedSource:
    """Find a trained model and read its job, no weight. Errors as in `load_trained_model`."""
    # The form of a checkpoint's address decides, so only another folder is looked into.
    storage = open_storage(uri)
    record = None if CheckpointAddress.of(uri).name else read_export_record(storage)
    if record is not None:
        return _exported(storage, record, cache_folder)
    store, info = find_checkpoint(uri, checkpoint)
    return _checkpoint(store, info, cache_folder)


def load_source(source: TrainedSource) -> TrainedModel:
    """Load what was found, onto the GPU where there is one. Errors as in `load_trained_model`."""
    folder = source.fetch()
    decoder = load_tokenizer(folder)
    model = _load_model(source, folder)
    ends = end_of_sequence_ids(model.generation_config, decoder)
    # The job alone says how to sample: what the base model's publisher preferred would fill every gap.
    model.generation_config = GenerationConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedModel(
        model=cast(PreTrainedModel, model.to(device).eval()),
        encoder=SegmentTokenizer(read_tokenizer_json(folder)),
        decoder=decoder,
        end_of_sequence_ids=ends,
        job=source.job,
        checkpoint=source.checkpoint,
        classifier=source.classifier,
    )


def read_prompt_maker(source: TrainedSource) -> PromptMaker:
    """How the model is asked, from its small files. Errors as in `load_trained_model`."""
    folder, job = source.fetch_small(), source.job
    with_config = folder if (folder / "config.json").is_file() else model_folder(job.model_id, with_weights=False)
    return PromptMaker(
        prompt_format=job.prompt_format,
        generation=source.generation,
        encoder=SegmentTokenizer(read_tokenizer_json(folder)),
        context_length=read_model_facts(with_config).context_length,
    )


def saved_end_of_sequence_ids(folder: Path, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """What ends a text by the files of a model: its generation settings, else its architecture, and its tokenizer."""
    if (folder / GENERATION_CONFIG_NAME).is_file():
        return end_of_sequence_ids(GenerationConfig.from_pretrained(folder), tokenizer)
    architecture = AutoConfig.from_pretrained(folder).get_text_config()
    return end_of_sequence_ids(GenerationConfig.from_model_config(architecture), tokenizer)


def quiet_transformers() -> None:
    """Let transformers report errors only: answers go to people and to other programs."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _checkpoint(store: CheckpointStore, info: CheckpointInfo, cache_folder: Path) -> TrainedSource:
    target = cache_folder / FOLDER / info.name
    needed = [record.path for record in info.files if not record.path.startswith(OPTIMIZER_PREFIX)]

    def fetch(paths: list[str]) -> Path:
        return store.local_folder(info, target, paths)

    job_file = fetch([RESOLVED_JOB_FILE]) / RESOLVED_JOB_FILE
    return TrainedSource(
        uri=join_uri(store.storage.root_uri, FOLDER, info.name),
        job=job_from_yaml(job_file.read_text(encoding="utf-8"), f"{info.name}/{RESOLVED_JOB_FILE}"),
        checkpoint=info,
        fetch=lambda: fetch(needed),
        fetch_small=lambda: fetch(_without_weights(needed)),
        cache_folder=cache_folder,
        classifier=read_classifier(needed, fetch),
    )


def _exported(storage: Storage, record: ExportRecord, cache_folder: Path) -> TrainedSource:
    # Named by what is in it: an export may be made anew at the same address.
    version = hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:32]
    info, target = record.info, cache_folder / EXPORT_FOLDER / version

    def fetch(paths: list[str]) -> Path:
        try:
            return local_folder(storage, "", manifest_of(info), target, paths)
        except DamagedError as error:
            raise CheckpointError(f"damaged export: {error}\n(export the run again)") from error

    paths = [file.path for file in info.files]
    return TrainedSource(
        uri=storage.root_uri,
        job=record.job,
        checkpoint=info,
        fetch=lambda: fetch(paths),
        fetch_small=lambda: fetch(_without_weights(paths)),
        cache_folder=cache_folder,
        classifier=read_classifier(paths, fetch),
        is_export=True,
    )


def _without_weights(paths: list[str]) -> list[str]:
    return [path for path in paths if not path.endswith(".safetensors")]


def _load_model(source: TrainedSource, folder: Path) -> PreTrainedModel:
    job = source.job
    precision = weights_precision(source, folder)
    if not has_adapter(source, folder):
        return load_base_model(folder, folder, precision=precision)
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    weights = model_folder(
        job.initial_base_model_ckpt_path or job.model_id, with_weights=True, cache_folder=source.cache_folder
    )
    # In few bits where it was trained so: the adapter has learnt to make up for their rounding.
    base = load_base_model(architecture, weights, precision=precision, quantization=job.quantization)
    return cast(PreTrainedModel, load_adapter(base, folder, is_trainable=False))


def has_adapter(source: TrainedSource, folder: Path) -> bool:
    """Whether a fetched model is an adapter over a base, and not whole weights."""
    return (folder / CONFIG_FILE).is_file() if source.is_export else source.job.method != "full"


def weights_precision(source: TrainedSource, folder: Path) -> Precision:
    """What the weights of a fetched model are held in."""
    written = _exported_precision(folder) if source.is_export and not has_adapter(source, folder) else None
    return written or cast(Precision, source.job.precision)


def _exported_precision(folder: Path) -> Precision | None:
    """What the weights of an export were written in, which may be another than that of training."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = f"torch.{config.get('dtype') or config.get('torch_dtype')}"
    return next((precision for precision, dtype in DTYPES.items() if str(dtype) == written), None)

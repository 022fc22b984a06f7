"""A trained model from wherever it lies: the run's folder or one of its checkpoints, local or `s3://`.

In: a URI. Out: a `TrainedModel`: base and adapter or full weights on the device, the tokenizer, and the prompt format
that the checkpoint itself holds. Nothing is asked of the user that the run already knows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.find import find_checkpoint
from llmforge.checkpoint.names import FOLDER
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.models.adapter_files import load_adapter
from llmforge.models.folder import model_folder, read_tokenizer_json
from llmforge.models.load import Precision, load_base_model, load_tokenizer

RESOLVED_JOB_FILE = "resolved_job.yaml"
OPTIMIZER_PREFIX = "optimizer/"


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


def load_trained_model(uri: str, checkpoint: str, cache_folder: Path) -> TrainedModel:
    """Load from a run's folder (`checkpoint`: best, latest or a name) or from a checkpoint's folder.

    Raises `CheckpointError` where there is no complete checkpoint or a file of it is damaged.
    """
    store, info = find_checkpoint(uri, checkpoint)
    needed = [record.path for record in info.files if not record.path.startswith(OPTIMIZER_PREFIX)]
    folder = store.local_folder(info, cache_folder / FOLDER / info.name, needed)
    job = job_from_yaml((folder / RESOLVED_JOB_FILE).read_text(encoding="utf-8"), f"{info.name}/{RESOLVED_JOB_FILE}")
    decoder = load_tokenizer(folder)
    model = _load_model(job, folder)
    end_of_sequence_ids = _end_of_sequence_ids(model, decoder)
    # The job alone says how to sample: what the base model's publisher preferred would fill every gap.
    model.generation_config = GenerationConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedModel(
        model=cast(PreTrainedModel, model.to(device).eval()),
        encoder=SegmentTokenizer(read_tokenizer_json(folder)),
        decoder=decoder,
        end_of_sequence_ids=end_of_sequence_ids,
        job=job,
        checkpoint=info,
    )


def _load_model(job: JobConfig, folder: Path) -> PreTrainedModel:
    precision = cast(Precision, job.precision)
    if job.method == "full":
        return load_base_model(folder, folder, precision=precision)
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    weights = model_folder(job.initial_base_model_ckpt_path or job.model_id, with_weights=True)
    # In few bits where it was trained so: the adapter has learnt to make up for their rounding.
    base = load_base_model(architecture, weights, precision=precision, quantization=job.quantization)
    return cast(PreTrainedModel, load_adapter(base, folder, is_trainable=False))


def _end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)

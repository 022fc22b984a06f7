"""A trained model that was found, ready to answer.

In: a `TrainedSource`. Out: a `TrainedModel`: base and adapter or full weights on the device, the tokenizer, and the
prompt format that the checkpoint itself holds. Nothing is asked of the user that the run already knows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import GENERATION_CONFIG_NAME

from llmforge.answers.answer_format import AnswerFormat, end_of_sequence_ids
from llmforge.answers.prompt_maker import PromptMaker
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.classifier import Classifier
from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.inference.classifier_file import answer_config
from llmforge.inference.find import TrainedSource
from llmforge.models.adapter_files import CONFIG_FILE, load_adapter
from llmforge.models.folder import model_folder, read_model_facts, read_tokenizer_json
from llmforge.models.load import DTYPES, Precision, load_base_model, load_tokenizer


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


def load_trained_model(source: TrainedSource) -> TrainedModel:
    """Load what was found, onto the GPU where there is one.

    Raises `CheckpointError` where a file of it is damaged, and what fetching it raises.
    """
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

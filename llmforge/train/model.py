"""The model of a job under the engine, and the tokenizer that goes with it.

In: the resolved job, and the checkpoint to go on from if there is one. Out: a `TrainingEngine` on this rank's device.
"""

from pathlib import Path
from typing import cast

import ray.train.torch
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import special_tokens
from llmforge.models.folder import model_folder, read_tokenizer_json
from llmforge.models.load import Attention, Precision, add_adapter, load_adapter, load_base_model, load_tokenizer
from llmforge.models.packing import check_examples_stay_apart
from llmforge.prompt.chat_template import chat_template
from llmforge.train.engine import TrainingEngine
from llmforge.train.optim import build_optimizer


def build_engine(job: JobConfig, restored: Path | None) -> TrainingEngine:
    """The model where the checkpoint `restored` left it, or where the job says that it starts."""
    device = ray.train.torch.get_device()
    torch.manual_seed(job.seed)  # a fresh adapter must start equal on all ranks
    model = build_model(job, restored).to(device)
    if job.packing:
        check_examples_stay_apart(model)
    if job.gradient_checkpointing:
        model.activation_checkpointing_enable()
    learning_rate = job.learning_rate
    assert learning_rate is not None  # `resolve_job` has filled it in
    optimizer = build_optimizer(model.parameters(), job.optimizer, learning_rate)
    deepspeed_config = deepspeed_config_of(job, model.config.get_text_config().hidden_size)
    return TrainingEngine(model, optimizer, deepspeed_config, device)


def build_model(job: JobConfig, restored: Path | None) -> PreTrainedModel:
    """The model to train: from a checkpoint of this run, or from where the job says that it starts."""
    precision, attention = cast(Precision, job.precision), cast(Attention, job.attention)
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    weights = architecture
    if job.initial_base_model_ckpt_path is not None:
        weights = model_folder(job.initial_base_model_ckpt_path, with_weights=True)
    if job.lora_config is None:
        return load_base_model(architecture, restored or weights, precision=precision, attention=attention)
    base = load_base_model(architecture, weights, precision=precision, attention=attention)
    if restored is not None:
        adapted = load_adapter(base, restored, is_trainable=True)
    elif job.initial_adapter_model_ckpt_path is not None:
        adapted = load_adapter(
            base, model_folder(job.initial_adapter_model_ckpt_path, with_weights=True), is_trainable=True
        )
    else:
        adapted = add_adapter(base, job.lora_config, str(weights))
    return cast(PreTrainedModel, adapted)


def build_tokenizer(job: JobConfig) -> PreTrainedTokenizerFast:
    """As it is saved: with the chat template of the job's prompt format."""
    folder = model_folder(job.model_id, with_weights=False)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = chat_template(job.prompt_format, frozenset(special_tokens(read_tokenizer_json(folder))))
    return tokenizer

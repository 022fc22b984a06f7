"""The model of a job under the engine, and the tokenizer that goes with it.

In: the resolved job, and the checkpoint to go on from if there is one. Out: a `TrainingEngine` on this rank's device,
proven to keep examples apart, and how batches are laid out for it.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import ray.train.torch
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.classifier import Classifier
from llmforge.config.deepspeed import deepspeed_config_of
from llmforge.config.job import JobConfig
from llmforge.config.operations import StepOperations
from llmforge.dataset.added_tokens import added_tokens, control_token
from llmforge.dataset.labels import labelled_tokenizer, new_classifier
from llmforge.dataset.tokenize import SegmentTokenizer, special_tokens
from llmforge.models.adapter_files import continue_adapter, load_adapter, resume_adapter, start_adapter
from llmforge.models.attention import BY_DOCUMENTS, use_attention
from llmforge.models.folder import adapter_folder, model_folder, read_model_facts, read_tokenizer_json
from llmforge.models.liger import apply_liger_kernel, fused_loss, wants_fused_loss
from llmforge.models.load import Precision, load_base_model, load_tokenizer
from llmforge.models.operations import count_operations
from llmforge.models.partitioned import partitioned_loading
from llmforge.models.vocabulary import make_room
from llmforge.prompt.chat_template import chat_template
from llmforge.train.batches import Batch, Layout
from llmforge.train.classification import ClassificationLoss
from llmforge.train.engine import TrainingEngine, start_deepspeed
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer
from llmforge.train.preference import PreferenceLoss
from llmforge.train.proofs import check_examples_stay_apart, choose_logits


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to be trained on this rank."""

    engine: TrainingEngine
    layout: Layout
    operations: StepOperations
    loaded_attention: str
    """What `transformers` gave the model when it was loaded, and gives it again to whoever asks it."""
    classifier: Classifier | None = None
    """Before anything is measured; None in other tasks."""


def prepare_model(job: JobConfig, restored: Path | None, cache_folder: Path) -> PreparedModel:
    """The model where the checkpoint `restored` left it, or where the job says that it starts.

    Raises `ModelError` where it lets the examples of a pack see each other.
    """
    device = ray.train.torch.get_device()
    start_deepspeed(device)
    facts = read_model_facts(model_folder(job.model_id, with_weights=False))
    deepspeed_config = deepspeed_config_of(job, facts.hidden_size or 0, dist.get_world_size())
    torch.manual_seed(job.seed)  # a fresh adapter must start equal on all ranks
    # An adapter that starts by changing base weights needs them whole.
    changes_base = job.lora_config is not None and job.lora_config.changes_base
    with nullcontext() if changes_base else partitioned_loading(deepspeed_config):
        model = build_model(job, restored, cache_folder).to(device)
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    loaded_attention: str = base.config._attn_implementation
    attention = use_attention(base, job.attention, device=device, allow_flash_attention=job.flash_attention_2)
    if job.gradient_checkpointing:
        model.activation_checkpointing_enable()
    learning_rate = job.learning_rate
    assert learning_rate is not None  # `resolve_job` has filled it in
    optimizer = build_optimizer(model.parameters(), job.optimizer, learning_rate)
    classifier = _classifier(job)
    loss = _loss(job, model, classifier)
    operations = count_operations(model)
    engine = TrainingEngine(loss, optimizer, deepspeed_config, device)
    layout = Layout(attention in BY_DOCUMENTS, job.context_length if job.padding == "max_length" else None)
    _prove(engine, loss, layout, job)
    if job.preference_tuning_config is not None:
        layout = replace(layout, of_answers=job.is_paired, rated=job.is_rated, alone=not job.packing)
    return PreparedModel(engine, layout, operations, loaded_attention, classifier)


def _classifier(job: JobConfig) -> Classifier | None:
    if job.classifier_config is None:
        return None
    return new_classifier(job, SegmentTokenizer(read_job_tokenizer(job)))


def _loss(job: JobConfig, model: PreTrainedModel, classifier: Classifier | None) -> NextTokenLoss:
    if job.preference_tuning_config is not None:
        return PreferenceLoss(model, job.preference_tuning_config)
    fused = fused_loss() if wants_fused_loss(job.liger_kernel) else None
    return NextTokenLoss(model, fused) if classifier is None else ClassificationLoss(model, classifier.token_ids, fused)


def _prove(engine: TrainingEngine, loss: NextTokenLoss, layout: Layout, job: JobConfig) -> None:
    def evaluate(batch: Batch) -> float:
        return engine.evaluate([batch])

    config, dtype = loss.model.config, loss.model.dtype
    choose_logits(loss, evaluate, layout, dtype)
    if job.packing:
        check_examples_stay_apart(evaluate, layout, config.model_type)


def build_model(job: JobConfig, restored: Path | None, cache_folder: Path) -> PreTrainedModel:
    """The model to train: from a checkpoint of this run, or from where the job says that it starts."""
    base, base_name = _build_base(job, restored, cache_folder)
    new_token_ids = list(_added_tokens(job).values())
    make_room(base, new_token_ids, like_others=True)
    if job.lora_config is None:
        return base
    if restored is not None:
        adapted = resume_adapter(base, job.lora_config, restored)
    elif job.initial_adapter_model_ckpt_path is not None:
        folder = adapter_folder(job.initial_adapter_model_ckpt_path, cache_folder)
        adapted = continue_adapter(base, job.lora_config, folder, base_name)
    else:
        adapted = start_adapter(base, job.lora_config, base_name, new_token_ids)
    return cast(PreTrainedModel, adapted)


def build_reference_model(job: JobConfig, cache_folder: Path) -> PreTrainedModel:
    """The model as it is before its first step, not to be trained."""
    base, _ = _build_base(job, None, cache_folder)
    if job.initial_adapter_model_ckpt_path is not None:
        folder = adapter_folder(job.initial_adapter_model_ckpt_path, cache_folder)
        base = cast(PreTrainedModel, load_adapter(base, folder, is_trainable=False))
    return base.requires_grad_(False).eval()


def _build_base(job: JobConfig, restored: Path | None, cache_folder: Path) -> tuple[PreTrainedModel, str]:
    """The model without an adapter, and what an adapter is to call it."""
    precision = cast(Precision, job.precision)
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    weights = architecture
    initial = job.initial_base_model_ckpt_path
    if initial is not None:
        weights = model_folder(initial, with_weights=True, cache_folder=cache_folder)
    base_name = initial if isinstance(initial, str) else str(weights)
    if job.lora_config is None and restored is not None:
        architecture = weights = restored
    base = load_base_model(architecture, weights, precision=precision, quantization=job.quantization)
    if job.liger_kernel is not None and job.liger_kernel.enabled:
        apply_liger_kernel(base, job.liger_kernel.kwargs)
    return base, base_name


def build_tokenizer(job: JobConfig) -> PreTrainedTokenizerFast:
    """As it is saved: with the chat template of the job's prompt format."""
    tokenizer = load_tokenizer(model_folder(job.model_id, with_weights=False))
    tokenizer.add_tokens([control_token(text) for text in _added_tokens(job)], special_tokens=True)
    tokenizer.chat_template = chat_template(job.prompt_format, frozenset(special_tokens(read_job_tokenizer(job))))
    return tokenizer


def read_job_tokenizer(job: JobConfig) -> str:
    """The text of the tokenizer of a resolved job: that of its model, with a token for each of its labels."""
    published = read_tokenizer_json(model_folder(job.model_id, with_weights=False))
    return labelled_tokenizer(job.labels, job.prompt_format, published)


def _added_tokens(job: JobConfig) -> dict[str, int]:
    """What the tokenizer of a job has and that of its model has not."""
    published = read_tokenizer_json(model_folder(job.model_id, with_weights=False))
    return added_tokens(published, read_job_tokenizer(job))

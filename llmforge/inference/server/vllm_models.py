"""Models for vLLM: what it is to load, and how each of them is asked and read.

In: trained models that vLLM can serve. Out: an engine that vLLM runs, and a `ServedModel` for every name. The weights
are read by vLLM alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from llmforge.answers.answer_format import AnswerFormat
from llmforge.config.serving import VLLM_DTYPES
from llmforge.inference.find import TrainedSource
from llmforge.inference.load import has_adapter, read_prompt_maker, saved_end_of_sequence_ids, weights_precision
from llmforge.inference.server.async_engine import AsyncEngine
from llmforge.inference.server.engine import Engine, EngineLimits
from llmforge.inference.server.served_model import AnswerLimits, ServedModel
from llmforge.inference.server.vllm_options import VllmAdapter, VllmPlan
from llmforge.models.folder import adapter_rank, model_folder
from llmforge.models.load import load_tokenizer


def load_with_vllm(
    sources: Sequence[TrainedSource], names: Sequence[str], answers: AnswerLimits, limits: EngineLimits
) -> tuple[tuple[ServedModel, ...], Engine]:
    """The models in a process of vLLM, which loads them when the engine is started."""
    # Where vllm is not installed this cannot be imported.
    from llmforge.inference.server.vllm_source import VllmSource  # noqa: PLC0415

    served = tuple(served_by_vllm(source, name, answers) for source, name in zip(sources, names, strict=True))
    plan = vllm_plan(sources, served)
    return served, AsyncEngine(VllmSource(plan, limits), limits)


def vllm_plan(sources: Sequence[TrainedSource], served: Sequence[ServedModel]) -> VllmPlan:
    """What vLLM loads: the whole weights of one source, or the base of all and their adapters."""
    first, folders = sources[0], [source.fetch() for source in sources]
    adapters = tuple(
        VllmAdapter(model.adapter, folder, adapter_rank(folder))
        for model, folder in zip(served, folders, strict=True)
        if model.adapter is not None
    )
    return VllmPlan(
        model=model_folder(first.job.model_id, with_weights=True) if adapters else folders[0],
        dtype=VLLM_DTYPES[weights_precision(first, folders[0])],
        longest=max(model.longest for model in served),
        adapters=adapters,
    )


def served_by_vllm(source: TrainedSource, name: str, limits: AnswerLimits) -> ServedModel:
    """How a model is asked and read, from its small files."""
    folder = source.fetch_small()
    is_adapter = has_adapter(source, folder)
    base = model_folder(source.job.model_id, with_weights=False) if is_adapter else folder
    return ServedModel(
        name=name,
        answer_format=_answer_format(source, folder, base),
        created=int(source.checkpoint.committed_at.timestamp()),
        vocabulary_size=AutoConfig.from_pretrained(base).get_text_config().vocab_size,
        limits=limits,
        adapter=name if is_adapter else None,
    )


def _answer_format(source: TrainedSource, folder: Path, base: Path) -> AnswerFormat:
    maker, decoder = read_prompt_maker(source), load_tokenizer(folder)
    return AnswerFormat(
        prompt_format=maker.prompt_format,
        generation=maker.generation,
        encoder=maker.encoder,
        context_length=maker.context_length,
        decoder=decoder,
        end_of_sequence_ids=saved_end_of_sequence_ids(base, decoder),
    )

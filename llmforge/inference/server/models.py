"""What is served: one trained model, or several adapters over one base.

In: trained models that were found. Out: an engine that answers for all of them, and a `ServedModel` for every name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ConfigError
from llmforge.inference.find import TrainedSource
from llmforge.inference.load import TrainedModel, load_trained_model
from llmforge.inference.server.engine import Engine, EngineLimits
from llmforge.inference.server.engine_choice import EngineChoice, EngineName, choose_engine
from llmforge.inference.server.served_model import AnswerLimits, ServedModel
from llmforge.inference.server.transformers_engine import TransformersEngine
from llmforge.inference.server.vllm_models import load_with_vllm
from llmforge.models.adapter_files import add_saved_adapter
from llmforge.models.folder import read_tokenizer_json
from llmforge.models.load import load_tokenizer

_FIRST_ADAPTER = "default"
"""PEFT's name of the one that a model is loaded with."""


@dataclass(frozen=True)
class ModelOptions:
    """How models are served."""

    answers: AnswerLimits
    engine: EngineLimits
    engine_name: EngineName = "auto"


@dataclass(frozen=True)
class LoadedModels:
    """What can be asked, and what answers."""

    served: tuple[ServedModel, ...]
    engine: Engine
    choice: EngineChoice


def load_models(sources: Sequence[TrainedSource], names: Sequence[str], options: ModelOptions) -> LoadedModels:
    """Load what is to be served; `names` are those of the sources in their order, none for their own.

    Raises `ConfigError` for wrong names and for sources that cannot share a base; otherwise as `load_trained_model`.
    """
    chosen = model_names(sources, names)
    check_shared(sources)
    choice = choose_engine(options.engine_name, sources)
    load = load_with_vllm if choice.name == "vllm" else load_with_transformers
    served, engine = load(sources, chosen, options.answers, options.engine)
    return LoadedModels(served, engine, choice)


def load_with_transformers(
    sources: Sequence[TrainedSource], names: Sequence[str], answers: AnswerLimits, limits: EngineLimits
) -> tuple[tuple[ServedModel, ...], Engine]:
    """The models in this process, on the GPU where there is one."""
    first = load_trained_model(sources[0])
    trained = [first, *(_beside(first, source, f"adapter_{n}") for n, source in enumerate(sources[1:], start=2))]
    adapters = [_FIRST_ADAPTER, *(f"adapter_{n}" for n in range(2, len(sources) + 1))]
    served = (
        ServedModel(
            name=name,
            answer_format=one.answer_format,
            created=int(one.checkpoint.committed_at.timestamp()),
            vocabulary_size=first.model.config.get_text_config().vocab_size,
            limits=answers,
            adapter=adapter if len(sources) > 1 else None,
            classifier=one.classifier,
        )
        for name, one, adapter in zip(names, trained, adapters, strict=True)
    )
    return tuple(served), TransformersEngine(first.model, limits, has_adapters=len(sources) > 1)


def model_names(sources: Sequence[TrainedSource], names: Sequence[str]) -> list[str]:
    """One for each source. Raises `ConfigError` for too few, too many, or one that is there twice."""
    if names and len(names) != len(sources):
        raise ConfigError(
            f"--name: found {len(names)} for {len(sources)} runs, allowed is one for each in their order, or none"
        )
    chosen = list(names) or [source.job.run_name or source.uri.rstrip("/").rpartition("/")[2] for source in sources]
    twice = [name for name, count in Counter(chosen).items() if count > 1]
    if twice:
        raise ConfigError(f"--name: found {twice[0]} twice; give every run a name of its own with --name")
    return chosen


def check_shared(sources: Sequence[TrainedSource]) -> None:
    """Raises `ConfigError` where models cannot be adapters of one base in one batch."""
    if len(sources) == 1:
        return
    first = sources[0]
    problems = []
    for source in sources:
        obstacle = _obstacle(source.job)
        if obstacle is not None:
            problems.append(f"{source.uri}: {obstacle}; serve it in a process of its own")
        elif _base(source.job) != _base(first.job):
            problems.append(
                f"{source.uri}: found the base {_base(source.job)}, allowed is {_base(first.job)} as in {first.uri}: "
                "runs that are served together share one base; serve it in a process of its own"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _obstacle(job: JobConfig) -> str | None:
    lora = job.lora_config
    if lora is None:
        return "found a run that trained all weights, allowed beside other runs are LoRA adapters"
    wide = {
        "use_dora": lora.use_dora,
        "modules_to_save": bool(lora.modules_to_save),
        "trainable_token_indices": bool(lora.trainable_token_indices),
        "target_parameters": bool(lora.target_parameters),
        f"bias {lora.bias}": lora.bias != "none",
    }
    found = [name for name, is_there in wide.items() if is_there]
    return f"found an adapter with {', '.join(found)}, which cannot share a batch with others" if found else None


def _base(job: JobConfig) -> str:
    """What an adapter was trained on, in words."""
    weights = f" with the weights of {job.initial_base_model_ckpt_path}" if job.initial_base_model_ckpt_path else ""
    bits = f" in {job.quantization.bits} bits" if job.quantization else ""
    return f"{job.model_id}{weights} in {job.precision}{bits}"


def _beside(first: TrainedModel, source: TrainedSource, adapter: str) -> TrainedModel:
    """One more adapter on the model of the first."""
    folder = source.fetch()
    add_saved_adapter(first.model, folder, adapter)
    decoder = load_tokenizer(folder)
    own_end = frozenset() if decoder.eos_token_id is None else frozenset({decoder.eos_token_id})
    return replace(
        first,
        encoder=SegmentTokenizer(read_tokenizer_json(folder)),
        decoder=decoder,
        end_of_sequence_ids=first.end_of_sequence_ids | own_end,
        job=source.job,
        checkpoint=source.checkpoint,
        classifier=source.classifier,
    )

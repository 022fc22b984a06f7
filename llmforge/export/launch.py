"""What starts a server on an exported folder: files for vLLM and for Ray Serve LLM.

In: a `ServedFolder`. Out: `LaunchFile`s, plain text. Paths inside are relative where the server allows it, so that the
folder may be moved or copied. No server is imported or asked here.
"""

import json
import shlex
from dataclasses import dataclass

import yaml

from llmforge.config.classifier import Classifier
from llmforge.config.serving import VLLM_DTYPES, VLLM_MAX_RANK, vllm_rank
from llmforge.errors import ConfigError
from llmforge.export.stopping import ServedGeneration

LAUNCH_TARGETS = ("vllm", "ray-serve-llm", "ollama")
VLLM_CONFIG, VLLM_SCRIPT, RAY_SERVE_CONFIG = "vllm.yaml", "serve_vllm.sh", "ray_serve_llm.yaml"
LABEL_ONLY = (
    "This is a classifier, of which only the likeliest token comes from here: neither its threshold nor its calibrated "
    "probabilities. llmforge serve gives both (README.md)."
)
_LABEL_LOGPROBS = (
    'Requests with "logprobs": true, "top_logprobs": 20 get log probabilities over all tokens; where a label is a '
    'control token they need "skip_special_tokens": false.'
)
_REQUESTS = "every request has to name these stops, which are no single tokens"


@dataclass(frozen=True)
class AdapterFacts:
    """What a server needs to know of an exported adapter."""

    base: str
    """The base model: a name of the hub, or an absolute folder."""
    rank: int
    """The largest of a layer."""
    unservable: tuple[str, ...]
    """Choices of its job that keep servers from loading it beside its base."""


@dataclass(frozen=True)
class ServedFolder:
    """An exported folder that is to be served."""

    uri: str
    """Where it will stand."""
    name: str
    """What clients call the model."""
    precision: str
    generation: ServedGeneration
    chat_template: str
    context_length: int | None
    adapter: AdapterFacts | None
    """None where the weights are merged."""
    classifier: Classifier | None = None
    """None for a model that writes text."""

    @property
    def is_local(self) -> bool:
        """Whether it stands in a folder of this machine."""
        return not self.uri.startswith("s3://")


@dataclass(frozen=True)
class LaunchFile:
    """One file of the exported folder."""

    name: str
    text: str
    is_executable: bool = False


def vllm_files(folder: ServedFolder) -> list[LaunchFile]:
    """A configuration for `vllm serve --config`, and a script that starts it. Raises `ConfigError`."""
    config: dict[str, object] = {"model": "."}
    if folder.adapter is not None:
        adapter = _servable(folder.adapter, "vLLM")
        config = {
            "model": adapter.base,
            "tokenizer": ".",
            "chat-template": "./chat_template.jinja",
            "enable-lora": True,
            "lora-modules": f"{folder.name}=.",  # no list: older versions would take its brackets for text
            "max-lora-rank": _max_rank(adapter.rank),
        }
    config["served-model-name"] = folder.name if folder.adapter is None else f"{folder.name}-base"
    config["dtype"] = VLLM_DTYPES[folder.precision]
    config["generation-config"] = "."
    config["override-generation-config"] = json.dumps(folder.generation.sampling)
    header = ["Made by llmforge for: vllm serve --config vllm.yaml, started inside this folder.", *_notes(folder)]
    script = [
        "#!/bin/sh",
        f"# Serves {folder.name} on http://127.0.0.1:8000/v1; options of `vllm serve` may follow.",
        "set -e",
        'cd "$(dirname "$0")"',
        f'exec vllm serve --config {shlex.quote(VLLM_CONFIG)} --host 127.0.0.1 "$@"',
    ]
    return [
        LaunchFile(VLLM_CONFIG, _yaml(header, config)),
        LaunchFile(VLLM_SCRIPT, "\n".join(script) + "\n", is_executable=True),
    ]


def ray_serve_files(folder: ServedFolder) -> list[LaunchFile]:
    """A configuration for `serve run`, of `ray.serve.llm:build_openai_app`. Raises `ConfigError`."""
    engine: dict[str, object] = {
        "dtype": VLLM_DTYPES[folder.precision],
        "override_generation_config": folder.generation.sampling,
    }
    loading: dict[str, object] = {"model_id": folder.name, "model_source": _source(folder.uri)}
    model: dict[str, object] = {"model_loading_config": loading, "engine_kwargs": engine}
    header = ["Made by llmforge for: serve run ray_serve_llm.yaml", *_notes(folder)]
    if folder.adapter is not None:
        adapter = _servable(folder.adapter, "Ray Serve LLM")
        if folder.is_local:
            raise ConfigError(
                "--to ray-serve-llm: found --adapter and a local folder, allowed is an s3:// address: Ray Serve LLM "
                "loads adapters from object stores only. Export there, or the merged weights (without --adapter)"
            )
        parent, _, name = folder.uri.rstrip("/").rpartition("/")
        base_id = f"{folder.name}-base"
        loading |= {"model_id": base_id, "model_source": adapter.base}
        engine |= {"enable_lora": True, "max_lora_rank": _max_rank(adapter.rank)}
        engine["chat_template"] = folder.chat_template
        model["lora_config"] = {"dynamic_lora_loading_path": parent}
        header.append(f"Clients ask for the model {base_id}:{name}.")
    application = {
        "name": "llmforge",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model]},
    }
    return [LaunchFile(RAY_SERVE_CONFIG, _yaml(header, {"applications": [application]}))]


def _servable(adapter: AdapterFacts, server: str) -> AdapterFacts:
    if adapter.unservable:
        raise ConfigError(
            f"--to: found an adapter with {', '.join(adapter.unservable)}, allowed for {server} are plain LoRA "
            "matrices; export the merged weights (without --adapter)"
        )
    return adapter


def _max_rank(rank: int) -> int:
    found = vllm_rank(rank)
    if found is None:
        raise ConfigError(
            f"--to: found an adapter of rank {rank}, allowed in vLLM is at most {VLLM_MAX_RANK}; export the merged "
            "weights (without --adapter)"
        )
    return found


def _source(uri: str) -> str | dict[str, str]:
    return {"bucket_uri": uri} if uri.startswith("s3://") else uri


def _notes(folder: ServedFolder) -> list[str]:
    """What a configuration of a server cannot say."""
    generation = folder.generation
    notes = [
        f"Answers end by themselves at {', '.join(generation.stop_tokens) or 'no token'} and after at most "
        f"{generation.max_tokens} tokens (generation_config.json)."
    ]
    if generation.stop_texts and folder.classifier is None:
        notes.append(f"{_REQUESTS}: {json.dumps({'stop': list(generation.stop_texts)}, ensure_ascii=False)}")
    if folder.classifier is not None:
        notes += [LABEL_ONLY, _LABEL_LOGPROBS]
    if not folder.is_local:
        notes.append(f"Copy {folder.uri} to the machine of a server that reads local folders only.")
    return notes


def _yaml(header: list[str], content: dict[str, object]) -> str:
    comments = [f"# {line}" for text in header for line in text.splitlines()]
    return "\n".join(comments) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=2**31)

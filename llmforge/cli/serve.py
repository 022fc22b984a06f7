"""`llmforge serve`: trained models over HTTP, from this process or from replicas on a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from llmforge.cli.places import cache_folder
from llmforge.errors import ConfigError

if TYPE_CHECKING:
    from llmforge.inference.find import TrainedSource
    from llmforge.inference.server.models import ModelOptions
    from llmforge.inference.server.run import ServerOptions

_EXTRAS = {"serve": ("prometheus_client", "starlette", "uvicorn"), "serve-ray": ("ray", "fastapi")}
"""Packages by which an extra is known to be installed."""

Sources = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs, checkpoints or exports; adapters may share a base.")
]
Names = Annotated[Optional[list[str]], typer.Option(help="For each RUN, in order; default: the run's name.")]  # noqa: UP045
Host = Annotated[str, typer.Option(help="One that other machines can reach needs LLMFORGE_API_KEY.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")]
EngineOption = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(help="What makes the answers; auto: vLLM where it is installed, has a GPU and takes the models."),
]
Replicas = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1, help="Processes on a Ray cluster, one GPU each: the one that RAY_ADDRESS names, else this machine."
    ),
]
Cached = Annotated[int, typer.Option(min=2, help="Memory: most of answers at once x tokens of the longest.")]
Drain = Annotated[float, typer.Option(min=0, help="How long running answers may take at the end.")]


def serve(  # noqa: PLR0913 - the options of a command
    sources: Sources,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a checkpoint's name.")] = "best",
    name: Names = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    engine: EngineOption = "auto",
    num_replicas: Replicas = None,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Answers that are made at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    max_cached_tokens: Cached = 32768,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 4 << 20,
    drain_seconds: Drain = 60,
) -> None:
    """Serve trained models by OpenAI's API, with a chat page and metrics, until Ctrl-C or SIGTERM."""
    _check_packages("serve", *([] if num_replicas is None else ["serve-ray"]))
    from llmforge.inference.server.guard import API_KEY_VARIABLE, check_binding

    api_key = os.environ.get(API_KEY_VARIABLE) or None
    check_binding(host, api_key)

    from llmforge.inference.find import find_trained_model

    found = [find_trained_model(source, checkpoint, cache_folder()) for source in sources]
    from llmforge.inference.load import quiet_transformers
    from llmforge.inference.server.engine import EngineLimits
    from llmforge.inference.server.models import ModelOptions
    from llmforge.inference.server.run import ServerOptions
    from llmforge.inference.server.served_model import AnswerLimits

    quiet_transformers()
    limits = EngineLimits(max_concurrency, max_waiting, max_cached_tokens)
    models = ModelOptions(AnswerLimits(max_tokens, max_cached_tokens), limits, engine)
    options = ServerOptions(host, port, api_key, max_body_bytes, drain_seconds)
    if num_replicas is None:
        _serve_here(found, name or [], models, options)
    else:
        _serve_on_ray(found, name or [], models, options, num_replicas)


def _serve_here(
    found: Sequence[TrainedSource], names: Sequence[str], models: ModelOptions, options: ServerOptions
) -> None:
    from llmforge.inference.server.models import load_models
    from llmforge.inference.server.run import serve_until_signal

    loaded = load_models(found, names, models)

    def announce(port: int) -> None:
        _announce([model.name for model in loaded.served], found, str(loaded.choice))
        _announce_address(options, port, "")

    serve_until_signal(loaded, options, announce)


def _serve_on_ray(
    found: Sequence[TrainedSource],
    names: Sequence[str],
    models: ModelOptions,
    options: ServerOptions,
    num_replicas: int,
) -> None:
    from llmforge.inference.server.deployment import DeploymentOptions, deploy_until_signal
    from llmforge.inference.server.models import check_shared, model_names
    from llmforge.inference.server.replica import ReplicaPlan
    from llmforge.train.cluster import is_remote, start_ray

    if options.port == 0:
        raise ConfigError("--port 0: found with --num-replicas, allowed is it without; name a port that is free")
    chosen = model_names(found, names)
    check_shared(found)
    start_ray(verbose=False)
    plan = ReplicaPlan(
        uris=tuple(source.uri for source in found),
        names=tuple(chosen),
        models=models,
        cache_folder=cache_folder(),
        host=options.host,
        max_body_bytes=options.max_body_bytes,
        needs_key=options.api_key is not None,
    )

    def announce(engine: str) -> None:
        _announce(chosen, found, engine)
        where = " of the cluster's head node" if is_remote() else ""
        _announce_address(options, options.port, f"{where}, {num_replicas} replicas")

    deploy_until_signal(plan, DeploymentOptions(num_replicas, options.port, options.drain_seconds), announce)


def _announce(names: Sequence[str], found: Sequence[TrainedSource], engine: str) -> None:
    for name, source in zip(names, found, strict=True):
        print(f"{name}: {source.uri}, step {source.checkpoint.step}", file=sys.stderr)
    print(f"engine: {engine}", file=sys.stderr)


def _announce_address(options: ServerOptions, port: int, note: str) -> None:
    at = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{port}"
    key = " (asks for the API key)" if options.api_key else ""
    print(f"serving at {at}/v1, chat page at {at}/{key}{note}", file=sys.stderr)
    print("Ctrl-C takes no new requests and lets running ones end; once more stops at once", file=sys.stderr)


def _check_packages(*extras: str) -> None:
    from importlib.util import find_spec

    for extra in extras:
        missing = [package for package in _EXTRAS[extra] if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"serve: found no package {', '.join(missing)} in this environment; install the extra that has it: "
                f"pip install 'llmforge[{extra}]'"
            )

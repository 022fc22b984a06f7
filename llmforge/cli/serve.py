"""`llmforge serve`: trained models over HTTP."""

import os
import sys
from typing import Annotated, Optional

import typer

from llmforge.cli.places import cache_folder
from llmforge.errors import ConfigError

_PACKAGES = ("prometheus_client", "starlette", "uvicorn")
"""Those of the extra `serve`."""


Sources = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs, checkpoints or exports; adapters may share a base.")
]
Names = Annotated[Optional[list[str]], typer.Option(help="For each RUN, in order; default: the run's name.")]  # noqa: UP045
Host = Annotated[str, typer.Option(help="One that other machines can reach needs LLMFORGE_API_KEY.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")]
Cached = Annotated[int, typer.Option(min=2, help="Memory: most of answers at once x tokens of the longest.")]
Drain = Annotated[float, typer.Option(min=0, help="How long running answers may take at the end.")]


def serve(  # noqa: PLR0913 - the options of a command
    sources: Sources,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a checkpoint's name.")] = "best",
    name: Names = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Answers that are made at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    max_cached_tokens: Cached = 32768,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 4 << 20,
    drain_seconds: Drain = 60,
) -> None:
    """Serve trained models by OpenAI's API, with a chat page and metrics, until Ctrl-C or SIGTERM."""
    _check_packages()
    from llmforge.inference.server.guard import API_KEY_VARIABLE, check_binding

    api_key = os.environ.get(API_KEY_VARIABLE) or None
    check_binding(host, api_key)

    from llmforge.inference.load import find_trained_model, quiet_transformers
    from llmforge.inference.server.engine import EngineLimits
    from llmforge.inference.server.models import load_models
    from llmforge.inference.server.run import ServerOptions, serve_until_signal
    from llmforge.inference.server.served_model import AnswerLimits

    quiet_transformers()
    found = [find_trained_model(source, checkpoint, cache_folder()) for source in sources]
    models = load_models(found, name or [], AnswerLimits(max_tokens, max_cached_tokens))

    def announce(port: int) -> None:
        for model, source in zip(models.served, found, strict=True):
            print(f"{model.name}: {source.uri}, step {source.checkpoint.step}", file=sys.stderr)
        at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"serving at {at}/v1, chat page at {at}/{' (asks for the API key)' if api_key else ''}", file=sys.stderr)
        print("Ctrl-C takes no new requests and lets running ones end; once more stops at once", file=sys.stderr)

    limits = EngineLimits(max_concurrency, max_waiting, max_cached_tokens)
    options = ServerOptions(host, port, api_key, max_body_bytes, drain_seconds)
    serve_until_signal(models, limits, options, announce)


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"serve: found no package {', '.join(missing)} in this environment; install the extra that has it: "
            "pip install 'llmforge[serve]'"
        )

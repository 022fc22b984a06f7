"""One of several processes that answer the same, each as `run.Server` does, behind Ray Serve.

In: a `ReplicaPlan`, which holds no secret: the API key is read where the replica runs. Out: a deployment of Ray Serve
whose requests come to the application of `app.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from ray import serve
from starlette.types import ASGIApp

from llmforge.errors import ConfigError
from llmforge.inference.find import find_trained_model
from llmforge.inference.load import quiet_transformers
from llmforge.inference.ray_workers import use_assigned_cpus
from llmforge.inference.server.app import make_app
from llmforge.inference.server.guard import API_KEY_VARIABLE, check_binding
from llmforge.inference.server.models import ModelOptions, load_models
from llmforge.inference.server.service import Service
from llmforge.inference.server.telemetry import metrics_text
from llmforge.storage.files import exclusive

_FETCHING = "serve.lock"
"""In the cache: replicas of one node fetch a model one after another, so that only the first moves bytes."""


@dataclass(frozen=True)
class ReplicaPlan:
    """What every replica does."""

    uris: tuple[str, ...]
    """Of the models; every node can reach them."""
    names: tuple[str, ...]
    models: ModelOptions
    cache_folder: Path
    """On the node."""
    host: str
    """What the proxies listen on."""
    max_body_bytes: int
    needs_key: bool
    """Whether whoever started it has an API key, and so expects one to be asked for."""


@serve.ingress()
class Replica:
    """Loads the models when it is made, and answers until it is ended."""

    def __init__(self, plan: ReplicaPlan) -> None:
        self._plan = plan
        self._api_key = node_api_key(plan)
        use_assigned_cpus()
        quiet_transformers()
        with exclusive(plan.cache_folder / _FETCHING):
            sources = [find_trained_model(uri, "best", plan.cache_folder) for uri in plan.uris]
            for source in sources:
                source.fetch()
        models = load_models(sources, plan.names, plan.models)
        self._choice = str(models.choice)
        self._service = Service(models.served, models.engine)
        self._ended = models.engine.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What answers the requests."""
        return make_app(
            self._service,
            api_key=self._api_key,
            max_body_bytes=self._plan.max_body_bytes,
            metrics=self._all_metrics,
        )

    def check_health(self) -> None:
        """Ask for a new replica where a step of the model has failed."""
        if self._ended.done():
            raise RuntimeError("the engine has ended") from self._ended.exception()

    def engine(self) -> str:
        """Which program makes the answers, and why."""
        return self._choice

    def metrics(self) -> tuple[str, Sequence[Metric]]:
        """The name of this replica, and what it has counted."""
        return serve.get_replica_context().replica_id.unique_id, self._service.telemetry.collected()

    def drain(self) -> int:
        """Take no new requests; how many are open."""
        self._service.is_draining = True
        return self._service.telemetry.num_open

    def end(self) -> None:
        """Stop at once; what is not whole fails."""
        self._service.close()

    async def _all_metrics(self) -> bytes:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        return metrics_text(dict(await handle.broadcast("metrics").results_async()))


def node_api_key(plan: ReplicaPlan) -> str | None:
    """From the environment of this process. Raises `ConfigError` where one is needed and there is none."""
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    if api_key is None and plan.needs_key:
        raise ConfigError(
            f"{API_KEY_VARIABLE}: found it where `llmforge serve` runs and not on a node of the cluster; the key is "
            "sent nowhere, so set it in the environment that Ray is started in on every node"
        )
    check_binding(plan.host, api_key)
    return api_key

"""Several replicas on a Ray cluster behind one address, until they are told to stop.

In: what every replica serves, and a connected Ray. Out: nothing; it returns when all replicas are drained and removed.
Ray Serve sends each request to a replica with few, starts failed ones anew, and is started and ended here.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray import serve
from ray.serve.handle import DeploymentHandle

from llmforge.errors import ClusterError
from llmforge.inference.ray_workers import device_per_worker
from llmforge.inference.server.guard import is_loopback
from llmforge.inference.server.replica import Replica, ReplicaPlan
from llmforge.inference.server.stop_signals import POLL_SECONDS, stop_signals

APPLICATION = "llmforge"
_OTHER_REQUESTS = 32
"""Requests to one replica beside the answers that it may hold: those that it refuses, health, metrics."""
_LAST_WORDS_SECONDS = 5.0
"""How long replies that are cut off may take to be sent."""


@dataclass(frozen=True)
class DeploymentOptions:
    """How the replicas are run."""

    num_replicas: int
    port: int
    drain_seconds: float
    """How long answers that are being made may take when the replicas are told to stop."""


def deploy_until_signal(plan: ReplicaPlan, options: DeploymentOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. `announce` is given the engine.

    To be called in the main thread. Raises `ClusterError` where the cluster has no room, or the replicas cannot start.
    """
    # Until there is something to drain, SIGTERM ends this as Ctrl-C does: by an exception that removes what is there.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with deployed(plan, options) as replicas, stop_signals() as signals:
            announce(replicas.broadcast("engine").results()[0])
            signals.wait()
            drain(replicas, options.drain_seconds, signals.hurry)
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def deployed(plan: ReplicaPlan, options: DeploymentOptions) -> Iterator[DeploymentHandle]:
    """Replicas that answer as long as the block lasts. Raises `ClusterError`."""
    device = device_per_worker(options.num_replicas, "--num-replicas")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _check_no_serve()
    try:
        yield _deploy(plan, options, device)
    finally:
        serve.shutdown()


def drain(replicas: DeploymentHandle, seconds: float, hurry: threading.Event) -> None:
    """Let replicas take no new requests and wait for their open ones, `seconds` at most; end what is left."""
    if not _wait_for_replies(replicas, seconds, hurry):
        replicas.broadcast("end").results()
        _wait_for_replies(replicas, _LAST_WORDS_SECONDS, threading.Event())


def _wait_for_replies(replicas: DeploymentHandle, seconds: float, hurry: threading.Event) -> bool:
    """Whether all are sent in time."""
    deadline = time.monotonic() + seconds
    while sum(replicas.broadcast("drain").results()):
        if time.monotonic() > deadline or hurry.wait(POLL_SECONDS):
            return False
    return True


def _deploy(plan: ReplicaPlan, options: DeploymentOptions, device: dict[str, float]) -> DeploymentHandle:
    serve.start(
        proxy_location="HeadOnly" if is_loopback(plan.host) else "EveryNode",
        http_options={"host": plan.host, "port": options.port},
    )
    deployment = serve.deployment(Replica).options(
        name="replica",
        num_replicas=options.num_replicas,
        ray_actor_options=device,
        max_ongoing_requests=plan.models.engine.max_unfinished + _OTHER_REQUESTS,
        graceful_shutdown_timeout_s=options.drain_seconds,
    )
    try:
        return serve.run(deployment.bind(plan), name=APPLICATION)
    except RuntimeError as error:
        raise ClusterError(f"--num-replicas {options.num_replicas}: the replicas cannot start: {error}") from error


def _check_no_serve() -> None:
    """Raises `ClusterError` where Ray Serve runs already, which then has an address of its own, for whomever."""
    if serve.status().proxies:
        raise ClusterError(
            "--num-replicas: found a Ray Serve that runs on this cluster already, allowed is a cluster without, since "
            "the address and who can reach it are chosen when Ray Serve starts; end it with `serve shutdown`, or take "
            "another cluster"
        )

"""What the server counts, for Prometheus.

In: what happened. Out: the text of `/metrics`. Every server has a registry of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Telemetry:
    """Counters of one server."""

    def __init__(self, num_running: Callable[[], float], num_waiting: Callable[[], float]) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.num_open = 0
        """Requests whose replies are not sent yet."""
        self.requests = Counter(
            "llmforge_requests", "Requests by path and status.", ("path", "code"), registry=registry
        )
        self.answers = Counter("llmforge_answers", "Answers by model and end.", ("model", "end"), registry=registry)
        self.decisions = Counter(
            "llmforge_labels", "Labels that classifiers have decided for.", ("model", "label"), registry=registry
        )
        self.prompt_tokens = Counter("llmforge_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self.answer_tokens = Counter("llmforge_answer_tokens", "Tokens of answers.", ("model",), registry=registry)
        self.first_token_seconds = Histogram(
            "llmforge_first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "llmforge_request_seconds", "From a request's arrival to its end.", buckets=_SECONDS, registry=registry
        )
        running = Gauge("llmforge_running_answers", "Answers that are being made.", registry=registry)
        running.set_function(num_running)
        waiting = Gauge("llmforge_waiting_answers", "Answers that wait for a place.", registry=registry)
        waiting.set_function(num_waiting)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def collected(self) -> list[Metric]:
        """All of it, to be put beside that of other servers."""
        return list(self._registry.collect())


def metrics_text(collected: Mapping[str, Sequence[Metric]]) -> bytes:
    """What several servers have counted, each under its name, as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(_Merged(collected))
    return generate_latest(registry)


class _Merged(Collector):
    """Samples of one metric have to stand together, whoever they are of."""

    def __init__(self, collected: Mapping[str, Sequence[Metric]]) -> None:
        self._collected = collected

    def collect(self) -> Iterable[Metric]:
        """All metrics, with the samples of all servers."""
        merged: dict[str, Metric] = {}
        for replica, metrics in self._collected.items():
            for metric in metrics:
                target = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    target.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        return merged.values()

"""What several servers count, as one page of Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from llmforge.inference.server.telemetry import Telemetry, metrics_text


def test_every_replica_has_its_own_samples_and_every_metric_stands_once() -> None:
    first, second = Telemetry(lambda: 3, lambda: 0), Telemetry(lambda: 5, lambda: 1)
    first.answers.labels("mine", "stop").inc(2)
    second.answers.labels("mine", "stop").inc(7)
    second.request_seconds.observe(0.3)
    text = metrics_text({"one": first.collected(), "two": second.collected()}).decode()
    assert text.count("# TYPE llmforge_answers_total counter") == 1
    samples = {
        (sample.name, sample.labels["replica"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert (samples["llmforge_answers_total", "one"], samples["llmforge_answers_total", "two"]) == (2, 7)
    assert (samples["llmforge_running_answers", "one"], samples["llmforge_running_answers", "two"]) == (3, 5)
    assert samples["llmforge_request_seconds_count", "two"] == 1

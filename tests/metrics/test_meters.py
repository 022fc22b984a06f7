"""Exact values of the arithmetic on speed, time and loss."""

import math

import pytest

from llmforge.metrics.meters import StepMeter, StepSample, TimeEstimate, duration_text, per_second, perplexity


def test_rates_are_tokens_over_time_and_not_means_of_rates() -> None:
    meter = StepMeter()
    meter.add(StepSample(num_tokens=1000, num_trained_tokens=400, seconds=1.0))
    meter.add(StepSample(num_tokens=1000, num_trained_tokens=200, seconds=3.0))
    assert meter.read(peak_memory_bytes=2**30) == {
        "train/trained_tokens_per_second": 150.0,
        "train/tokens_per_second": 500.0,
        "train/step_seconds": 2.0,
        "train/peak_memory_bytes": 2**30,
    }


def test_a_reading_forgets_the_steps_it_has_told_of() -> None:
    meter = StepMeter()
    meter.add(StepSample(1000, 400, 10.0))
    meter.read()
    meter.add(StepSample(300, 100, 0.5))
    assert meter.read() == {
        "train/trained_tokens_per_second": 200.0,
        "train/tokens_per_second": 600.0,
        "train/step_seconds": 0.5,
    }


def test_a_reading_without_a_step_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="at least one step"):
        StepMeter().read()


def test_a_rate_over_no_time_is_unknown() -> None:
    assert math.isnan(per_second(100, 0.0))
    assert per_second(100, 0.25) == 400.0


def test_time_left_counts_everything_since_the_origin() -> None:
    estimate = TimeEstimate(origin_step=1, origin_seconds=100.0)
    assert estimate.seconds_left(step=1, now_seconds=100.0, max_steps=11) is None
    assert estimate.seconds_left(step=6, now_seconds=120.0, max_steps=11) == 20.0
    assert estimate.seconds_left(step=11, now_seconds=140.0, max_steps=11) == 0.0


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (1.0, math.e), (709.0, math.exp(709.0)), (710.0, math.inf), (math.inf, math.inf)]
)
def test_perplexity(loss: float, expected: float) -> None:
    assert perplexity(loss) == expected


def test_perplexity_of_nan_is_nan() -> None:
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3780, "1 h 03 min"),
        (2 * 86400 + 4 * 3600 + 59, "2 d 4 h"),
    ],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

"""Exact values of the arithmetic on speed, time and loss."""

import math
from collections.abc import Mapping

import pytest

from llmforge.metrics.meters import (
    PARTS,
    StepMeter,
    StepSample,
    TimeEstimate,
    duration_text,
    per_second,
    perplexity,
)


def sample(
    num_tokens: int,
    num_trained_tokens: int,
    seconds: float,
    *,
    num_positions: int | None = None,
    part_seconds: Mapping[str, float] | None = None,
    operations: tuple[float, float] = (0.0, 0.0),
    peak_memory_bytes: tuple[int, ...] = (),
) -> StepSample:
    """A step of which nothing is known but what is given."""
    needed, by_6n = operations
    return StepSample(
        num_tokens=num_tokens,
        num_trained_tokens=num_trained_tokens,
        num_positions=num_tokens if num_positions is None else num_positions,
        seconds=seconds,
        part_seconds=part_seconds or {},
        operations=needed,
        operations_6n=by_6n,
        peak_memory_bytes=peak_memory_bytes,
    )


def test_rates_are_tokens_over_time_and_not_means_of_rates() -> None:
    meter = StepMeter(num_devices=2, peak_operations_per_second=None)
    meter.add(sample(1000, 400, 1.0))
    meter.add(sample(1000, 200, 3.0))
    assert meter.read() == {
        "train/trained_tokens_per_second": 150.0,
        "train/tokens_per_second": 500.0,
        "train/trained_tokens_per_second_per_device": 75.0,
        "train/tokens_per_second_per_device": 250.0,
        "train/step_seconds": 2.0,
        "train/padding_share": 0.0,
    }


def test_a_reading_forgets_the_steps_it_has_told_of() -> None:
    meter = StepMeter(1, None)
    meter.add(sample(1000, 400, 10.0))
    meter.read()
    meter.add(sample(300, 100, 0.5))
    assert meter.read()["train/tokens_per_second"] == 600.0


def test_a_reading_without_a_step_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="at least one step"):
        StepMeter(1, None).read()


def test_parts_are_means_of_steps_that_all_measured_them() -> None:
    meter = StepMeter(1, None)
    meter.add(sample(10, 5, 1.0, part_seconds={"data": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}))
    meter.add(sample(10, 5, 3.0, part_seconds={"data": 0.3, "forward": 0.5, "backward": 1.5}))
    record = meter.read()
    assert {part: record[f"train/{part}_seconds"] for part in PARTS[:3]} == pytest.approx(
        {"data": 0.2, "forward": 0.4, "backward": 1.0}
    )
    assert "train/optimizer_seconds" not in record


def test_the_share_of_padding_is_that_of_all_positions() -> None:
    meter = StepMeter(1, None)
    meter.add(sample(100, 50, 1.0, num_positions=100))
    meter.add(sample(200, 50, 1.0, num_positions=300))
    assert meter.read()["train/padding_share"] == 0.25


def test_operations_over_the_peak_of_all_devices() -> None:
    meter = StepMeter(num_devices=4, peak_operations_per_second=200e12)
    meter.add(sample(10, 5, 1.0, operations=(200e12, 300e12)))
    meter.add(sample(10, 5, 3.0, operations=(1400e12, 1300e12)))
    record = meter.read()
    assert record["train/tflops_per_device"] == 100.0
    assert (record["train/mfu"], record["train/mfu_6n"]) == (0.5, 0.5)


def test_without_a_peak_there_is_no_share_of_it_and_without_a_count_nothing() -> None:
    meter = StepMeter(1, None)
    meter.add(sample(10, 5, 2.0, operations=(4e12, 6e12)))
    record = meter.read()
    assert record["train/tflops_per_device"] == 2.0
    assert not {"train/mfu", "train/mfu_6n"} & record.keys()
    unknown = StepMeter(1, 1e12)
    unknown.add(sample(10, 5, 2.0))
    assert not {"train/tflops_per_device", "train/mfu", "train/mfu_6n"} & unknown.read().keys()


def test_no_time_makes_every_rate_unknown() -> None:
    meter = StepMeter(2, 1e12)
    meter.add(sample(10, 5, 0.0, operations=(1e12, 1e12)))
    record = meter.read()
    for key in ("tokens_per_second", "tokens_per_second_per_device", "tflops_per_device", "mfu", "mfu_6n"):
        assert math.isnan(record[f"train/{key}"])


def test_memory_of_a_rank_is_told_when_it_changes() -> None:
    meter = StepMeter(2, None)

    def read(*peaks: tuple[int, ...]) -> dict[str, float]:
        for peak in peaks:
            meter.add(sample(10, 5, 1.0, peak_memory_bytes=peak))
        return {key: value for key, value in meter.read().items() if "memory" in key}

    first = {"train/peak_memory_bytes_rank_0": 100, "train/peak_memory_bytes_rank_1": 80}
    assert read((100, 70), (90, 80)) == {"train/peak_memory_bytes": 100, **first}
    assert read((100, 80)) == {"train/peak_memory_bytes": 100}
    assert read((100, 120)) == {"train/peak_memory_bytes": 120, "train/peak_memory_bytes_rank_1": 120}
    assert read(()) == {}


def test_memory_of_the_only_rank_is_the_most_of_all() -> None:
    meter = StepMeter(1, None)
    meter.add(sample(10, 5, 1.0, peak_memory_bytes=(2**30,)))
    assert {key: value for key, value in meter.read().items() if "memory" in key} == {"train/peak_memory_bytes": 2**30}


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

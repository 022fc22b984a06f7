"""The numbers and words of the report."""

import math

import pytest

from llmforge.metrics.summary import (
    Tile,
    best_evaluation,
    bytes_text,
    count_text,
    decimal_text,
    find_warnings,
    merge_records,
    number_text,
    summarise,
    visible_text,
)


def test_records_are_merged_by_step_and_later_values_count() -> None:
    records = [
        {"step": 2, "train/loss": 2.0},
        {"step": 1, "train/loss": 9.0},
        {"step": 2, "eval/loss": 1.5},
        {"step": 1, "train/loss": 3.0},
    ]
    assert merge_records(records) == [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "train/loss": 2.0, "eval/loss": 1.5},
    ]


def test_the_best_evaluation_is_the_first_lowest_finite_one() -> None:
    losses = [math.nan, 2.0, 1.0, 1.0, math.nan, -math.inf]
    records = [{"step": step, "eval/loss": loss} for step, loss in enumerate(losses)]
    best = best_evaluation([{"step": 9, "train/loss": 0.1}, *records])
    assert best is not None and best["step"] == 2
    assert best_evaluation([{"step": 1, "eval/loss": math.nan}]) is None


def test_summary_of_a_run() -> None:
    speed = {"train/trained_tokens_per_second": 100.0, "train/step_seconds": 2.0}
    records = [
        {"step": 0, "eval/loss": 3.0},
        {"step": 10, "epoch": 0.5, "train/loss": 2.0, "train/peak_memory_bytes": 2**30, **speed},
        {"step": 20, "epoch": 1.0, "train/loss": 1.0, "train/peak_memory_bytes": 2**31, **speed, "eval/loss": 1.5},
        {
            "step": 30,
            "epoch": 1.5,
            "train/loss": 0.5,
            "train/trained_tokens_per_second": 400.0,
            "train/step_seconds": 1.0,
        },
    ]
    assert summarise(records, best_evaluation(records)) == [
        Tile("Best evaluation loss", "1.5000", "perplexity 4.48 at step 20; loss 3.0000 before training"),
        Tile("Final training loss", "0.5000", "2.0000 at step 10"),
        Tile("Steps", "30", "1.50 epochs"),
        # 20 steps of 2 s at 100/s and 10 steps of 1 s at 400/s
        Tile("Trained tokens/s", "160", "8,000 trained tokens"),
        Tile("Time in steps", "50 s", "without start-up, evaluations and saves"),
        Tile("Peak memory", "2.00 GiB", "largest of the devices"),
    ]


STEP = {
    "step": 1,
    "train/trained_tokens_per_second": 400.0,
    "train/tokens_per_second": 1000.0,
    "train/trained_tokens_per_second_per_device": 100.0,
    "train/step_seconds": 2.0,
    "train/data_seconds": 0.01,
    "train/forward_seconds": 0.6,
    "train/backward_seconds": 1.2,
    "train/optimizer_seconds": 0.1,
    "train/padding_share": 0.5,
    "train/tflops_per_device": 300.0,
    "train/mfu": 0.3,
    "train/mfu_6n": 0.4,
    "train/peak_memory_bytes": 2**31,
    "train/peak_memory_bytes_rank_0": 2**30,
    "train/peak_memory_bytes_rank_1": 2**31,
}


def test_where_time_work_and_memory_went() -> None:
    later = {
        "train/step_seconds": 1.0,
        "train/padding_share": 0.0,
        "train/mfu": 0.6,
    }
    tiles = summarise([STEP, {**STEP, **later, "step": 3, "save/seconds": 0.2}, {"step": 4, "save/seconds": 0.1}])
    assert tiles == [
        Tile("Trained tokens/s", "400", "1,600 trained tokens; 100/s per device"),
        Tile("Time in steps", "4.0 s", "without start-up, evaluations and saves"),
        Tile("Time of a step", "1.333 s", "data wait 0.8%, forward 45.0%, backward 90.0%, optimizer 7.5%"),
        Tile("Training held back by saves", "0.3 s", "2 saves, 7.5% on top of the time in steps"),
        # 2,000 tokens on 4,000 positions, then 2,000 on as many
        Tile("Padding", "33.3%", "of the positions computed"),
        Tile("MFU", "45.0%", "300 TFLOP/s per device; 40.0% by 6 x parameters x tokens"),
        Tile("Peak memory", "2.00 GiB", "rank 0 1.00 GiB, rank 1 2.00 GiB"),
    ]


def test_a_rank_keeps_its_most_memory_and_many_ranks_are_not_listed() -> None:
    peaks = [(0, 3), (1, 2), (0, 1), (2, 3), (3, 4), (4, 4)]
    records = [
        {"step": step, "train/peak_memory_bytes": 2**32, f"train/peak_memory_bytes_rank_{rank}": gib * 2.0**30}
        for step, (rank, gib) in enumerate(peaks)
    ]
    assert summarise(records[:3])[-1] == Tile("Peak memory", "4.00 GiB", "rank 0 3.00 GiB, rank 1 2.00 GiB")
    assert summarise(records)[-1].detail == "largest of 5 ranks; the smallest 2.00 GiB on rank 1"


def test_a_device_of_unknown_peak_has_a_speed_and_no_share() -> None:
    record = {key: value for key, value in STEP.items() if "mfu" not in key}
    assert Tile("TFLOP/s of a device", "300", "operations that the model needs") in summarise([record])
    slow = record | {"train/tflops_per_device": 0.00606}
    assert Tile("GFLOP/s of a device", "6.06", "operations that the model needs") in summarise([slow])


@pytest.mark.parametrize(
    ("waits", "step_seconds", "warned"),
    [
        ((0.5, 2.0, 2.0), 100.0, True),
        ((0.5, 0.5, 0.5), 100.0, False),  # below 1 %
        ((90.0, 0.9, 0.9), 100.0, False),  # the first batch cannot be fetched ahead
        ((0.0, 0.4, 0.4), 2.0, False),  # below a second in all
        ((5.0,), 100.0, True),
    ],
)
def test_a_wait_for_data_is_a_warning_with_what_to_do(
    waits: tuple[float, ...], step_seconds: float, warned: bool
) -> None:
    records = [
        {
            **STEP,
            "step": step,
            "train/step_seconds": step_seconds,
            "train/data_seconds": wait,
            "train/padding_share": 0.0,
        }
        for step, wait in enumerate(waits, start=1)
    ]
    warnings = find_warnings(records)
    assert len(warnings) == warned
    if len(waits) > 1 and warned:
        assert warnings[0].startswith("The steps waited for their batches for 4.0 s, 2.0% of their time; up to 1% is")
        assert "worker_resources" in warnings[0]


def test_much_padding_is_a_warning_with_what_to_do() -> None:
    assert find_warnings([{**STEP, "train/padding_share": 0.09}]) == []
    (warning,) = find_warnings([STEP])
    assert warning.startswith("50.0% of the positions that the model computed were padding; up to 10% is usual.")
    assert "packing: true" in warning


def test_summary_of_one_step_and_of_none() -> None:
    assert summarise([{"step": 1, "train/loss": 2.0}]) == [
        Tile("Final training loss", "2.0000"),
        Tile("Steps", "1"),
    ]
    assert summarise([]) == []


def test_an_unknown_rate_spoils_no_sum() -> None:
    records = [
        {"step": 1, "train/trained_tokens_per_second": math.nan, "train/step_seconds": 0.0},
        {"step": 2, "train/trained_tokens_per_second": 10.0, "train/step_seconds": 3.0},
    ]
    assert summarise(records)[0] == Tile("Trained tokens/s", "10", "30 trained tokens")


def test_a_diverged_loss_is_a_warning_that_names_the_step_and_a_remedy() -> None:
    losses = [1.0, math.nan, math.inf, 1.0]
    (warning,) = find_warnings([{"step": 10 * step, "train/loss": loss} for step, loss in enumerate(losses)])
    assert warning.startswith("The training loss is not a finite number at 2 logged steps, the first of them step 10.")
    assert "lower the learning rate" in warning
    (warning,) = find_warnings([{"step": 7, "eval/loss": math.nan}])
    assert warning.startswith("The evaluation loss is not a finite number at step 7.")
    assert find_warnings([{"step": 1, "train/loss": 1.0}]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.462234, "0.4622"),
        (123456.7, "123,457"),
        (1e-5, "1e-05"),
        (math.nan, "NaN"),
        (math.inf, "infinite"),
        ([1000, "a", None], "1,000, a, none"),
        ("<b>", "<b>"),
    ],
)
def test_number_text(value: object, text: str) -> None:
    assert number_text(value) == text


def test_texts_of_losses_and_counts() -> None:
    assert [decimal_text(value, 2) for value in (1.005, 12345.678, math.nan, math.inf)] == [
        "1.00",
        "12,345.68",
        "NaN",
        "infinite",
    ]
    assert [count_text(count) for count in (0.0, 999_999.0, 3_216_543.0, 1_040_000_000.0)] == [
        "0",
        "999,999",
        "3.22 M",
        "1.04 B",
    ]


def test_line_ends_and_control_characters_are_made_visible() -> None:
    assert visible_text("a\n\nb\tc\r\n\x00\x1b\x7f") == "a↵\n↵\nb\tc␍↵\n␀␛␡"
    assert visible_text("\x9b31m \u202eevil\u2066 \u2028 \u200b\ufeff") == (
        "<U+009B>31m <U+202E>evil<U+2066> <U+2028> <U+200B><U+FEFF>"
    )
    for untouched in ("\u2764\ufe0f\u200d\U0001f525", "\u0645\u06cc\u200c\u062e", "e\u0301 \u00a0x"):
        assert visible_text(untouched) == untouched


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.00 KiB"), (1536, "1.50 KiB"), (5 * 2**19, "2.50 MiB"), (3 * 2**30, "3.00 GiB"), (2**40, "1024.00 GiB")],
)
def test_amounts_of_memory(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text

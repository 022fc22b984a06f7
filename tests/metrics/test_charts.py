"""Charts are well-formed, follow the colours of the page, and stay small."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from llmforge.metrics.charts import MAX_POINTS, Chart, draw_charts, draw_lengths
from llmforge.metrics.data_facts import LengthBin, Lengths
from llmforge.metrics.meters import PARTS

pytestmark = pytest.mark.slow


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "train/loss": value} for step, value in enumerate(values, start=1)]


def step_times(step: int, seconds: float) -> dict[str, float]:
    parts = dict(zip(PARTS, (0.1, 0.3, 0.5, 0.05), strict=True))
    return {
        "step": step,
        "train/step_seconds": seconds,
        **{f"train/{part}_seconds": share * seconds for part, share in parts.items()},
    }


def polylines(svg: str, variable: str) -> list[str]:
    """The path data of the lines drawn in a colour, frames and legend apart: those are short."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--{variable}\)', svg)
    return [path for path in paths if "clip-path" not in path]


def height(path: str) -> float:
    """Of the box around an outline."""
    rows = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
    return max(rows) - min(rows)


def assert_well_formed(chart: Chart) -> None:
    for svg in filter(None, [chart.svg, chart.wide_svg]):
        ElementTree.fromstring(svg)
        assert "http" not in svg and "<style" not in svg
        assert not re.findall(r"#[0-9a-f]{6}\b", svg), "a colour that is no variable"
        assert set(re.findall(r'href="([^"]*)"', svg)) <= {f"#{name}" for name in re.findall(r' id="([^"]*)"', svg)}


def test_a_chart_for_each_quantity_that_was_measured() -> None:
    record = {
        "step": 1,
        "train/loss": 1.0,
        "train/lr": 1e-4,
        "train/grad_norm": 1.0,
        "train/trained_tokens_per_second": 5.0,
        "train/step_seconds": 1.0,
        "train/mfu": 0.4,
        "train/padding_share": 0.0,
        "train/peak_memory_bytes": 2**30,
        **{f"train/{part}_seconds": 0.25 for part in PARTS},
    }
    assert [chart.title for chart in draw_charts([record])] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Trained tokens per second",
        "Seconds per step",
        "MFU (%)",
        "Padding (%)",
        "Peak memory (GiB)",
        "Where the time of a step goes (%)",
    ]
    assert [chart.title for chart in draw_charts([{"step": 0, "eval/loss": 1.0}])] == ["Loss"]
    assert draw_charts([]) == []


@pytest.mark.parametrize(
    "records",
    [
        losses(2.0),
        losses(math.nan),
        losses(0.0, 0.0),
        losses(3.0, math.nan, math.inf, 2.0, 1.0),
        losses(*[math.nan] * 40),
        [*losses(3.0, 2.0), {"step": 2, "eval/loss": 2.5}],
        [{"step": 5, "train/grad_norm": 0.0}, {"step": 6, "train/grad_norm": math.nan}],
        [{"step": step, "train/grad_norm": 10.0 ** (step % 7)} for step in range(50)],
        [{"step": step, "train/lr": 0.0} for step in range(3)],
        [step_times(1, 1.0)],
        [step_times(step, 0.5 + step % 3) for step in range(1, 5000)],
        [step_times(1, 0.0), step_times(2, 1.0), step_times(3, 1.0)],
    ],
)
def test_every_drawing_is_well_formed_and_refers_to_nothing_outside(records: list[dict[str, float]]) -> None:
    for chart in draw_charts(records):
        assert_well_formed(chart)


def test_the_same_records_give_the_same_bytes() -> None:
    assert draw_charts(losses(3.0, 2.0, 1.0)) == draw_charts(losses(3.0, 2.0, 1.0))


def test_a_long_run_keeps_its_spike_and_stays_small() -> None:
    values = [2.0 + 0.1 * math.sin(step) for step in range(50_000)]
    values[31_234] = 9.0
    (chart,) = draw_charts(losses(*values))
    assert len(chart.svg) < 100_000
    faint = max(polylines(chart.svg, "train"), key=len)
    points = [tuple(map(float, pair.split())) for pair in re.split(r"[ML]", faint) if pair.strip()]
    assert len(points) < 1.1 * MAX_POINTS
    heights = sorted(y for _, y in points)
    assert heights[1] - heights[0] > 100, "one point stands far above all others"


def test_a_gap_in_the_loss_is_a_gap_in_the_line() -> None:
    whole, broken = (draw_charts(losses(3.0, 2.0, value, 2.0, 1.0))[0].svg for value in (1.5, math.nan))
    assert max(polylines(whole, "train"), key=len).count("M") == 1
    assert max(polylines(broken, "train"), key=len).count("M") == 2


@pytest.mark.parametrize("steps", [(1, 2, 3), (7,)])
def test_the_parts_of_a_step_lie_above_each_other(steps: tuple[int, ...]) -> None:
    chart = draw_charts([step_times(step, 2.0) for step in steps])[-1]
    _, frame = re.findall(r'<path d="([^"]*)" style="fill: none"/>', chart.svg)[:2]
    outlines = dict(re.findall(r'<path id="([^"]*)" d="([^"]*)"', chart.svg))
    areas = re.findall(r'<use href="#([^"]*)"[^>]*fill: var\(--(eval|train)\)', chart.svg)
    whole = height(frame)
    assert [color for _, color in areas] == ["eval", "train", "train", "train"]
    assert [height(outlines[name]) / whole for name, _ in areas] == pytest.approx([0.1, 0.3, 0.5, 0.05], abs=1e-5)
    assert all(f">{label}</text>" in chart.svg for label in ("data wait", "forward", "backward", "optimizer"))


@pytest.mark.parametrize(
    ("bins", "context_length", "num_inside", "num_beyond", "is_marked"),
    [
        ([(1, 64, 5), (65, 128, 9), (129, 192, 0), (193, 4000, 2)], 128, 2, 2, True),
        ([(1, 1, 1)], 8, 1, 0, False),
        ([(33, 64, 7)], 8192, 1, 0, False),
        ([(129, 256, 7), (257, 300, 1)], 100, 0, 2, True),
    ],
)
def test_bars_of_lengths(
    bins: list[tuple[int, int, int]], context_length: int, num_inside: int, num_beyond: int, is_marked: bool
) -> None:
    """Those beyond the context length have another colour; a mark far from all bars would press them together."""
    chart = draw_lengths(Lengths("", [LengthBin(*found) for found in bins], context_length))
    assert_well_formed(chart)
    for svg in (chart.svg, chart.wide_svg or ""):
        filled = re.findall(r"fill: var\(--(train|eval)\)", svg)
        assert (filled.count("train"), filled.count("eval")) == (num_inside, num_beyond)
        assert (f"context length {context_length:,}" in svg) == is_marked

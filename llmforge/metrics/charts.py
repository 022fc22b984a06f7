"""Charts of a run and of its data as SVG text to be placed into an HTML page.

In: metric records (see `meters.py`) in order of step, or counts of lengths. Out: `<svg>` elements whose colours are CSS
variables (`--train`, `--eval`, `--text`, `--muted`, `--line`), so that one drawing serves a light and a dark page, and
which refer to nothing outside themselves. It knows nothing of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from llmforge.metrics.data_facts import Lengths
from llmforge.metrics.meters import PARTS, Record

MAX_POINTS = 600
"""Points of one line: more than a screen can show, few enough for a page of some hundred kilobytes."""

_POINTS_PER_INCH = 72
# Colours that nothing else draws with; each stands for a CSS variable until the SVG text is rewritten.
COLORS = {"train": "#0a0b01", "eval": "#0a0b02", "text": "#0a0b03", "muted": "#0a0b04", "line": "#0a0b05"}
_PART_LOOKS = {
    "data": ("eval", 1.0),
    "forward": ("train", 0.35),
    "backward": ("train", 0.65),
    "optimizer": ("train", 1.0),
}
"""Colour and opacity of each of `PARTS`."""


@dataclass(frozen=True)
class Chart:
    """One drawing: what it shows, in words and as SVG."""

    title: str
    svg: str
    """The drawing for small places, about 360 by 220 pixels."""
    wide_svg: str | None = None
    """The same for a wide place, about 740 by 480 pixels; None where only the small one is drawn."""


@dataclass(frozen=True)
class _Line:
    """The values of one key over the steps at which they were recorded."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def is_point(self) -> bool:
        """Too few finite values for a line to be seen."""
        return int(np.isfinite(self.values).sum()) < 2


def draw_charts(records: Sequence[Record]) -> list[Chart]:
    """The loss chart first, then one for each other quantity that the records hold."""
    charts = []
    if any("train/loss" in record or "eval/loss" in record for record in records):
        draw_loss = _draw_curves("loss")
        charts.append(Chart("Loss", _svg(draw_loss, records, 360, 220), _svg(draw_loss, records, 740, 490)))
    for title, name in (
        ("Reward accuracy", "reward_accuracy"),
        ("Reward margin", "reward_margin"),
        ("Accuracy", "accuracy"),
        ("F1", "f1"),
        ("Area under precision and recall", "prauc"),
    ):
        if any(f"train/{name}" in record or f"eval/{name}" in record for record in records):
            charts.append(Chart(title, _svg(_draw_curves(name), records, 360, 220)))
    for title, key, unit in (
        ("Learning rate", "train/lr", 1.0),
        ("Gradient norm", "train/grad_norm", 1.0),
        ("Trained tokens per second", "train/trained_tokens_per_second", 1.0),
        ("Seconds per step", "train/step_seconds", 1.0),
        ("MFU (%)", "train/mfu", 0.01),
        ("Padding (%)", "train/padding_share", 0.01),
        ("Peak memory (GiB)", "train/peak_memory_bytes", 2.0**30),
    ):
        if any(key in record for record in records):
            charts.append(Chart(title, _svg(_draw_quantity(key, unit), records, 360, 220)))
    if any(_has_parts(record) for record in records):
        charts.append(Chart("Where the time of a step goes (%)", _svg(_draw_parts, records, 360, 220)))
    return charts


def draw_lengths(lengths: Lengths) -> Chart:
    """A histogram with the context length marked; the last bin may be wider than the others."""
    bins, context_length = lengths.bins, lengths.context_length
    width = bins[0].longest - bins[0].shortest + 1

    def draw(axes: Axes) -> None:
        starts = np.array([bin.shortest - 1 for bin in bins], dtype=np.float64)
        colors = [COLORS["train" if bin.longest <= context_length else "eval"] for bin in bins]
        axes.bar(starts, [bin.count for bin in bins], width=0.92 * width, align="edge", color=colors)
        end = starts[-1] + width
        if context_length <= 1.5 * end:  # else it would press the bars together
            axes.axvline(context_length, color=COLORS["text"], linewidth=1.2, linestyle="--")
            is_left = context_length > 0.6 * max(end, context_length)
            axes.annotate(
                f"context length {context_length:,}",
                (context_length, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if is_left else 5, 4),
                textcoords="offset points",
                ha="right" if is_left else "left",
                color=COLORS["muted"],
            )
            end = max(end, context_length)
        margin = 0.02 * (end - starts[0])
        axes.set_xlim(starts[0] - margin, end + margin)

    return Chart("Lengths", figure_svg(draw, 360, 220), figure_svg(draw, 740, 280))


def _draw_curves(name: str) -> Callable[[Axes, Sequence[Record]], None]:
    """What is measured in training and in evaluation alike."""

    def draw(axes: Axes, records: Sequence[Record]) -> None:
        train, evaluation = _line(records, f"train/{name}"), _line(records, f"eval/{name}")
        if train.steps.size > 30:
            _plot(axes, train, "train", width=1.1, alpha=0.3)
            _plot(axes, _smoothed(train), "train", label="training, smoothed")
        elif train.steps.size:
            _plot(axes, train, "train", label="training")
        if evaluation.steps.size:
            _plot(axes, evaluation, "eval", label="evaluation", marker="o" if evaluation.steps.size <= 30 else "")
        axes.legend(loc="upper right" if name == "loss" else "best", frameon=False, labelcolor=COLORS["text"])

    return draw


def _draw_quantity(key: str, unit: float) -> Callable[[Axes, Sequence[Record]], None]:
    def draw(axes: Axes, records: Sequence[Record]) -> None:
        line = _line(records, key)
        _plot(axes, _Line(line.steps, line.values / unit), "train", width=1.4)
        finite = line.values[np.isfinite(line.values)]
        # One spike, as gradient norms have them, would press all the rest onto the axis.
        if finite.size and finite.min() > 0 and finite.max() > 20 * np.median(finite):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, 1.08 * finite.max() / unit if finite.any() else 1)

    return draw


def _has_parts(record: Record) -> bool:
    """Whether the time of the step was measured, and all parts of it."""
    return record.get("train/step_seconds", 0.0) > 0 and all(f"train/{part}_seconds" in record for part in PARTS)


def _draw_parts(axes: Axes, records: Sequence[Record]) -> None:
    """Shares of the step's time above each other; what is missing to the whole is none of the parts."""
    measured = [record for record in records if _has_parts(record)]
    steps = np.array([record["step"] for record in measured], dtype=np.float64)
    shares = np.array(
        [
            [100 * record[f"train/{part}_seconds"] / record["train/step_seconds"] for part in PARTS]
            for record in measured
        ]
    )
    if steps.size > MAX_POINTS // 4:
        stretches = np.array_split(np.arange(steps.size), MAX_POINTS // 4)
        steps, shares = (np.array([values[found].mean(axis=0) for found in stretches]) for values in (steps, shares))
    elif steps.size == 1:
        steps, shares = steps[0] + np.array([-0.4, 0.4]), np.repeat(shares, 2, axis=0)
    below = np.zeros(steps.size)
    for part, share in zip(PARTS, shares.T, strict=True):
        color, alpha = _PART_LOOKS[part]
        label = "data wait" if part == "data" else part
        axes.fill_between(steps, below, below + share, color=COLORS[color], alpha=alpha, linewidth=0, label=label)
        below = below + share
    axes.set_ylim(0, 100)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.98),
        ncols=len(PARTS),
        frameon=False,
        labelcolor=COLORS["text"],
        fontsize=9,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def _plot(
    axes: Axes, line: _Line, color: str, *, label: str = "_", width: float = 1.8, alpha: float = 1.0, marker: str = ""
) -> None:
    """Draw a line; the label `_` keeps it out of the legend."""
    thin = _thinned(line)
    marker = "o" if line.is_point else marker
    axes.plot(
        thin.steps,
        thin.values,
        color=COLORS[color],
        label=label,
        linewidth=width,
        alpha=alpha,
        marker=marker,
        markersize=5,
    )


def _line(records: Sequence[Record], key: str) -> _Line:
    pairs = [(record["step"], record[key]) for record in records if key in record]
    values = np.array([value for _, value in pairs], dtype=np.float64)
    return _Line(np.array([step for step, _ in pairs], dtype=np.float64), np.where(np.isfinite(values), values, np.nan))


def _thinned(line: _Line) -> _Line:
    """At most about MAX_POINTS points: the lowest and the highest of each stretch, so that spikes and gaps remain."""
    if line.steps.size <= MAX_POINTS:
        return line
    chosen: list[int] = []
    for stretch in np.array_split(np.arange(line.steps.size), MAX_POINTS // 2):
        # argmin and argmax both give the first NaN, if there is one: the line breaks there.
        found = {int(stretch[line.values[stretch].argmin()]), int(stretch[line.values[stretch].argmax()])}
        chosen.extend(sorted(found))
    return _Line(line.steps[chosen], line.values[chosen])


def _smoothed(line: _Line) -> _Line:
    """Mean over a window of about a thirtieth of the line, centred so that it does not lag; NaN stays a gap."""
    size = line.values.size
    is_known = np.isfinite(line.values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, line.values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    position = np.arange(size)
    # At the start, where a loss falls steeply, a one-sided mean would bend the curve: there the window shrinks on both
    # sides alike. At the end it keeps its size, for the last value alone says little.
    reach = np.minimum(position, max(1, size // 60))
    low, high = position - reach, np.minimum(position + reach + 1, size)
    means = (sums[high] - sums[low]) / np.maximum(1, counts[high] - counts[low])
    return _Line(line.steps, np.where(is_known, means, np.nan))


def _svg(draw: Callable[[Axes, Sequence[Record]], None], records: Sequence[Record], width: int, height: int) -> str:
    def draw_steps(axes: Axes) -> None:
        draw(axes, records)
        axes.set_xlim(*_step_range(records))  # the same for all charts, also where a line ends early

    return figure_svg(draw_steps, width, height)


def figure_svg(draw: Callable[[Axes], None], width: int, height: int, *, whole_numbers: bool = True) -> str:
    """One drawing in `COLORS`, so many pixels large; `whole_numbers`: along the horizontal axis."""
    with _page_style():
        figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="tight")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6 if width < 500 else 10, integer=whole_numbers, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_page(buffer.getvalue())


def _page_style() -> AbstractContextManager[None]:
    """Drawing settings for the length of a `with` block."""
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it is read aloud, searched, and takes the font of the page
            "svg.hashsalt": "llmforge",  # the same records give the same bytes
            "font.size": 11,
            "text.color": COLORS["text"],
            "xtick.color": COLORS["line"],
            "ytick.color": COLORS["line"],
            "xtick.labelcolor": COLORS["muted"],
            "ytick.labelcolor": COLORS["muted"],
            "axes.edgecolor": COLORS["line"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": COLORS["line"],
            "grid.linewidth": 0.8,
            "ytick.major.size": 0,
            "lines.solid_joinstyle": "round",
            "lines.solid_capstyle": "round",
        }
    )


def _step_range(records: Sequence[Record]) -> tuple[float, float]:
    first, last = records[0]["step"], records[-1]["step"]
    margin = 0.02 * (last - first) or 1.0
    return first - margin, last + margin


def _tick(value: float, position: int | None = None) -> str:
    """A short label for a tick; matplotlib passes the tick's position as well."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.2g}".replace("e-0", "e-")


def _for_page(svg: str) -> str:
    """The `<svg>` element alone, on one line: colours by CSS variables, the font of the page, no addresses."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'font-family: [^;"]*; ', "", svg).replace("xlink:href", "href")
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", svg).strip()

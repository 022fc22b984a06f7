"""Charts of a classifier: how sure it is and how often it is right, and what its threshold trades.

In: a `LabelEvaluation`. Out: charts as those of `charts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from llmforge.metrics.charts import COLORS, Chart, figure_svg
from llmforge.metrics.labels import LabelEvaluation, ReliabilityBin

_STYLES = ("-", "--", ":", "-.")
_SIZE = (360, 240)


def draw_label_charts(evaluation: LabelEvaluation) -> list[Chart]:
    """The reliability diagram, and the curves of precision over recall where there are any."""
    draws: dict[str, Callable[[Axes], None]] = {"Accuracy by probability of the label": _draw_reliability(evaluation)}
    if evaluation.curves:
        draws["Precision over recall"] = _draw_curves(evaluation)
    return [Chart(title, figure_svg(draw, *_SIZE, whole_numbers=False)) for title, draw in draws.items()]


def _draw_reliability(evaluation: LabelEvaluation) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        lowest = min(one.confidence for one in (*evaluation.reliability, *evaluation.reliability_before))
        axes.plot(
            [lowest, 1], [lowest, 1], color=COLORS["muted"], linewidth=1, linestyle="--", label="as often as said"
        )
        if evaluation.reliability_before != evaluation.reliability:
            _plot_bins(axes, evaluation.reliability_before, "eval", "without temperature")
        _plot_bins(axes, evaluation.reliability, "train", "as it decides")
        axes.set_ylim(-0.03, 1.05)
        axes.legend(loc="best", frameon=False, labelcolor=COLORS["text"], fontsize=9)

    return draw


def _plot_bins(axes: Axes, bins: Sequence[ReliabilityBin], color: str, label: str) -> None:
    """Larger where more rows are."""
    most = max(one.count for one in bins)
    places = [one.confidence for one in bins], [one.accuracy for one in bins]
    axes.plot(*places, color=COLORS[color], linewidth=1.2, label=label)
    axes.scatter(*places, s=[12 + 60 * one.count / most for one in bins], color=COLORS[color], alpha=0.6, linewidth=0)


def _draw_curves(evaluation: LabelEvaluation) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for number, curve in enumerate(evaluation.curves):
            axes.step(
                curve.recall,
                curve.precision,
                where="post",
                color=COLORS["train" if number % 2 == 0 else "eval"],
                linestyle=_STYLES[number // 2 % len(_STYLES)],
                linewidth=1.6,
                label=_plain(curve.label),
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.05)
        axes.legend(loc="best", frameon=False, labelcolor=COLORS["text"], fontsize=9)

    return draw


def _plain(label: str) -> str:
    """Text in which matplotlib sees no formula, and no line to be kept out of the legend."""
    escaped = label.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped

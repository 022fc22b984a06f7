"""The report of a run: one HTML file that opens without a network and runs no script.

In: `ReportData`, plain values. Out: the file, written whole or not at all. The page is `report.html.jinja` beside this
module; all that comes from the run is escaped there, for messages and job files may hold HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.metrics.charts import draw_charts, draw_lengths
from llmforge.metrics.data_facts import DataFacts
from llmforge.metrics.label_charts import draw_label_charts
from llmforge.metrics.labels import LabelEvaluation
from llmforge.metrics.meters import CHOOSING_METRICS, LABEL_METRICS, Record
from llmforge.metrics.page import ExampleSegment, render_page, write_page
from llmforge.metrics.sample_history import prompt_histories
from llmforge.metrics.samples import Sample
from llmforge.metrics.summary import best_evaluation, find_warnings, merge_records, summarise


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint that a person would use."""

    name: str
    step: int
    uri: str
    eval_loss: float | None = None
    """None for a run without evaluations."""
    chosen_by: str | None = None
    """Of `CHOOSING_METRICS`; None: the evaluation loss."""


@dataclass(frozen=True)
class ReportExample:
    """One example as the model was trained on it."""

    title: str
    """Where it comes from, such as `train.jsonl:17`."""
    segments: Sequence[ExampleSegment]


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows."""

    run_name: str
    records: Sequence[Record]
    """Metric records (see `meters.py`) in any order; of two values for the same key and step the later one counts."""
    job_yaml: str
    """The resolved job."""
    facts: DataFacts | None = None
    """Of the data that it was trained on."""
    description: str = ""
    """One line below the name: model, method, devices."""
    best_checkpoint: BestCheckpoint | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    """How to use the model: what it is for -> the command line."""
    examples: Sequence[ReportExample] = ()
    samples: Sequence[Sample] = ()
    """Answers to the job's prompts at every evaluation."""
    labels: LabelEvaluation | None = None
    """Of a classifier: what the evaluation of the best checkpoint has found."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to `path`, replacing an older one in one move."""
    write_page(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as text."""
    records = merge_records(data.records)
    checkpoint = data.best_checkpoint
    best = best_evaluation(records, None if checkpoint is None else checkpoint.step)
    chosen_by = None if checkpoint is None else checkpoint.chosen_by
    return render_page(
        "report.html.jinja",
        data=data,
        tiles=summarise(records, best, chosen_by),
        chosen_by=None if chosen_by is None else CHOOSING_METRICS[chosen_by],
        warnings=find_warnings(records),
        charts=draw_charts(records),
        evaluations=[record for record in records if "eval/loss" in record],
        of_pairs=any("eval/reward_accuracy" in record for record in records),
        label_metrics={key: name for key, name in LABEL_METRICS.items() if any(key in record for record in records)},
        label_charts=[] if data.labels is None else draw_label_charts(data.labels),
        best_step=None if best is None else best["step"],
        prompts=prompt_histories(data.samples),
        lengths_chart=None if data.facts is None else draw_lengths(data.facts.lengths),
    )

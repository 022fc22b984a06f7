"""The report of a finished run, composed from what the run left behind."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.dataset.preview import Piece
from llmforge.metrics.data_facts import DataFacts
from llmforge.metrics.meters import Record
from llmforge.metrics.page import ExampleSegment
from llmforge.metrics.report import BestCheckpoint, ReportData, ReportExample, write_report
from llmforge.metrics.samples import Sample
from llmforge.storage.base import Storage
from llmforge.storage.uri import join_uri

REPORT_FILE = "report.html"


def store_report(
    storage: Storage,
    job: JobConfig,
    job_text: str,
    facts: DataFacts,
    records: Sequence[Record],
    best: CheckpointInfo,
    preview: Mapping[str, Sequence[Piece]],
    samples: Sequence[Sample] = (),
) -> None:
    """Write `report.html` into the run's folder, where `storage` is rooted; `preview` are rows by their place."""
    run_uri = storage.root_uri
    data = ReportData(
        run_name=str(job.run_name),
        records=records,
        facts=facts,
        job_yaml=job_text,
        description=f"{job.model_id}, {job.method}, {job.devices_text} x {job.accelerator}, {job.precision}",
        best_checkpoint=BestCheckpoint(
            best.name, best.step, join_uri(run_uri, "checkpoints", best.name), best.eval_loss
        ),
        commands=use_commands(run_uri),
        examples=[_example(place, pieces) for place, pieces in preview.items()],
        samples=samples,
    )
    with tempfile.TemporaryDirectory(prefix="llmforge-report-") as folder:
        path = Path(folder) / REPORT_FILE
        write_report(path, data)
        storage.upload(path, REPORT_FILE)


def _example(place: str, pieces: Sequence[Piece]) -> ReportExample:
    segments = [ExampleSegment(piece.text, piece.trained, piece.is_control) for piece in pieces]
    return ReportExample(place, segments)


def use_commands(run_uri: str) -> dict[str, str]:
    """How a person goes on from here: commands that a shell takes as they stand."""
    run = shlex.quote(run_uri)
    return {
        "Talk to the model": f"llmforge chat {run}",
        "One answer": f'llmforge generate {run} --prompt "..."',
    }

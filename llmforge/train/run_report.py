"""The report of a finished run, composed from what the run left behind."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmforge.checkpoint.lineage import lineage_of, lineage_text
from llmforge.checkpoint.names import FOLDER
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.dataset.preview import Piece
from llmforge.metrics.data_facts import DataFacts
from llmforge.metrics.labels import LABEL_EVALUATION_FILE, LabelEvaluation
from llmforge.metrics.meters import Record
from llmforge.metrics.page import ExampleSegment
from llmforge.metrics.report import BestCheckpoint, ReportData, ReportExample, write_report
from llmforge.metrics.samples import Sample
from llmforge.storage.base import Storage, read_bytes
from llmforge.storage.uri import join_key, join_uri

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
    run_name, run_uri, lineage = str(job.run_name), storage.root_uri, lineage_of(best)
    description = f"{job.model_id}, {job.method}, {job.devices_text} x {job.accelerator}, {job.precision}"
    data = ReportData(
        run_name=run_name,
        records=records,
        facts=facts,
        job_yaml=job_text,
        description=f"{description}; trained in: {lineage_text(lineage, run_name)}" if lineage else description,
        best_checkpoint=BestCheckpoint(
            name=best.name,
            step=best.step,
            uri=join_uri(run_uri, FOLDER, best.name),
            eval_loss=best.eval_loss,
            chosen_by=None if job.best_by is None else f"eval/{job.best_by}",
        ),
        commands=use_commands(run_uri, is_classifier=bool(job.labels)),
        examples=[_example(place, pieces) for place, pieces in preview.items()],
        samples=samples,
        labels=_labels(storage, best) if job.labels else None,
    )
    with tempfile.TemporaryDirectory(prefix="llmforge-report-") as folder:
        path = Path(folder) / REPORT_FILE
        write_report(path, data)
        storage.upload(path, REPORT_FILE)


def _labels(storage: Storage, checkpoint: CheckpointInfo) -> LabelEvaluation | None:
    """What the evaluation of a classifier has found; None for a run without evaluations."""
    key = join_key(FOLDER, checkpoint.name, LABEL_EVALUATION_FILE)
    if not any(file.key == key for file in storage.list(join_key(FOLDER, checkpoint.name))):
        return None
    return LabelEvaluation.model_validate_json(read_bytes(storage, key))


def _example(place: str, pieces: Sequence[Piece]) -> ReportExample:
    segments = [ExampleSegment(piece.text, piece.trained, piece.is_control) for piece in pieces]
    return ReportExample(place, segments)


def use_commands(run_uri: str, *, is_classifier: bool = False) -> dict[str, str]:
    """How a person goes on from here: commands that a shell takes as they stand."""
    run = shlex.quote(run_uri)
    if is_classifier:
        return {"One label": f'llmforge generate {run} --prompt "..."'}
    return {
        "Talk to the model": f"llmforge chat {run}",
        "One answer": f'llmforge generate {run} --prompt "..."',
    }

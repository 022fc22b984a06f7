"""`llmforge train`: load the job, show the run, say where the model is."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from llmforge.cli.places import cache_folder
from llmforge.cli.validate import load_checked_job
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay


class DisplayHandler(logging.Handler):
    """Log lines that do not tear the progress display."""

    def __init__(self, display: ProgressDisplay) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.message(self.format(record))


def run_train(job_file: Path, overrides: Sequence[str], *, resume: bool, verbose: bool) -> None:
    """Run the job of a file."""
    timer = PhaseTimer()
    job = load_checked_job(str(job_file), overrides)
    with ProgressDisplay() as display:
        package_logger = logging.getLogger("llmforge")
        package_logger.handlers = [DisplayHandler(display)]
        with timer.phase("imports and start of Ray"):
            display.phase("starting Ray")
            from llmforge.train.cluster import start_ray

            importing = threading.Thread(target=_import_run)
            importing.start()
            start_ray(verbose=verbose)
            importing.join()
            from llmforge.train.run import RunRequest, run_training
            from llmforge.train.run_report import use_commands

        request = RunRequest(job, job_file.read_text(encoding="utf-8"), cache_folder(), resume=resume, verbose=verbose)
        result = run_training(request, display, timer)
    if verbose:
        display.message(timer.report())
    best_loss = result.best.eval_loss
    loss = "" if best_loss is None else f", validation loss {best_loss:.4f}"
    display.message(f"best checkpoint: {result.run_uri}/checkpoints/{result.best.name} (step {result.best.step}{loss})")
    display.message(f"report: {result.run_uri}/report.html")
    for purpose, command in use_commands(result.run_uri).items():
        display.message(f"{purpose.lower()}: {command}")


def _import_run() -> None:
    """Takes seconds of computing, while the start of Ray takes seconds of waiting (and must be the main
    thread's work).
    """
    from llmforge.train import run  # noqa: F401

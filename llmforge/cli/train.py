"""`llmforge train`: load the job, show the run, say where the model is."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from llmforge import __version__
from llmforge.cli.places import cache_folder
from llmforge.cli.validate import load_checked_job
from llmforge.metrics.loggers import MessageHandler
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.metrics.progress_lines import LineWriter

SIGNAL_EXIT = 128
"""Plus the number of the signal: what shells and job systems expect of a process that a signal has ended."""


def run_train(
    job_file: Path, overrides: Sequence[str], *, resume: bool, verbose: bool, submitted_by: str | None = None
) -> None:
    """Run the job of a file; `submitted_by` is the version of the llmforge that has sent it to this cluster."""
    timer = PhaseTimer()
    job = load_checked_job(str(job_file), overrides)
    with _open_display(submitted_by) as display:
        package_logger = logging.getLogger("llmforge")
        package_logger.handlers = [MessageHandler(display.message)]
        if submitted_by not in (None, __version__):
            display.message(
                f"llmforge {__version__} of this cluster runs what llmforge {submitted_by} has checked; where a key or"
                " a default has changed between them, they differ: install the same version"
            )
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
        try:
            result = run_training(request, display, timer)
        except KeyboardInterrupt:
            display.message("left at once; --resume goes on from the latest complete checkpoint")
            _leave_now()
    if verbose:
        display.message(timer.report())
    if result.stopped_by is not None:
        name = result.run_uri.rpartition("/")[2]
        display.message(f"stopped at step {result.latest.step}, saved as {result.latest.name}")
        again = f"train {job_file} run_name={name} --resume" if submitted_by is None else f"resume {name}"
        display.message(f"go on: llmforge {again}")
        raise typer.Exit(SIGNAL_EXIT + result.stopped_by)
    best_loss = result.best.eval_loss
    loss = "" if best_loss is None else f", validation loss {best_loss:.4f}"
    display.message(f"best checkpoint: {result.run_uri}/checkpoints/{result.best.name} (step {result.best.step}{loss})")
    display.message(f"report: {result.run_uri}/report.html")
    for purpose, command in use_commands(result.run_uri, is_classifier=bool(job.labels)).items():
        display.message(f"{purpose.lower()}: {command}")


def _open_display(submitted_by: str | None) -> ProgressDisplay:
    """For who sits here, or as lines that are drawn where the job came from."""
    if submitted_by is None:
        return ProgressDisplay()
    return ProgressDisplay(clock=time.time, view=LineWriter(sys.stdout))


def _leave_now() -> None:
    """End this process and Ray's; a thread of the run may still wait for workers and would keep a usual exit."""
    import ray

    ray.shutdown()
    sys.stderr.flush()
    os._exit(SIGNAL_EXIT + signal.SIGINT)


def _import_run() -> None:
    """Takes seconds of computing, while the start of Ray takes seconds of waiting (and must be the main
    thread's work).
    """
    from llmforge.train import run  # noqa: F401

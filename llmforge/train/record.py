"""What is kept and shown of a run while it lasts: `metrics.jsonl`, the progress display, the phases of its start.

In: the events that workers send. Out: the display, and files in the run's folder. One writer, in the driver, so that a
restarted worker group continues the same file.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmforge.errors import StorageError
from llmforge.metrics.loggers import JsonlLogger, read_metrics
from llmforge.metrics.meters import Record
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import NotFoundError, Storage
from llmforge.train.channel import Event

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class RunRecord:
    """Takes the events of one run. `storage` is rooted at the run's folder."""

    def __init__(self, storage: Storage, display: ProgressDisplay, timer: PhaseTimer) -> None:
        self._storage = storage
        self._display = display
        self._timer = timer
        self._folder = tempfile.TemporaryDirectory(prefix="llmforge-run-")
        self._path = Path(self._folder.name) / METRICS_FILE
        try:
            storage.download(METRICS_FILE, self._path)
        except NotFoundError:
            self._path.touch()
        self._logger = JsonlLogger(self._path)
        self._records: Sequence[Record] | None = None

    @property
    def records(self) -> Sequence[Record]:
        """All metric records of the run, also when it is closed."""
        return read_metrics(self._path) if self._records is None else self._records

    def handle(self, event: Event) -> None:
        """Show and keep one event."""
        match event.kind:
            case "phase":
                self._display.phase(event.text)
            case "timing":
                self._timer.add(event.text, event.metrics["seconds"])
            case "started":
                self._logger.close()
                is_resumed = event.step > 0
                self._logger = JsonlLogger(self._path, append=is_resumed, resume_from_step=event.step)
                self._display.start_training(event.step, int(event.metrics["max_steps"]))
            case "metrics":
                self._logger.log(event.metrics, event.step)
                self._display.update(event.metrics, event.step)
            case "checkpoint":
                self._display.message(f"step {event.step}: saved checkpoint {event.text}")
                self._store()

    def close(self) -> None:
        """Store what has been recorded; also after a failure."""
        self._logger.close()
        with self._folder:
            self._records = read_metrics(self._path)
            self._store()

    def _store(self) -> None:
        """A checkpoint is there without its curves too: what fails here must not end a run, nor hide why it ended."""
        try:
            self._storage.upload(self._path, METRICS_FILE)
        except StorageError as error:
            logger.warning("%s was not stored: %s", METRICS_FILE, error)

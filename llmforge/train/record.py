"""What is kept and shown of a run while it lasts: `metrics.jsonl`, the progress display, the phases of its start.

In: the events that workers send. Out: the display, and files in the run's folder. One writer, in the driver, so that a
restarted worker group continues the same file.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmforge.checkpoint.names import FOLDER
from llmforge.errors import StorageError
from llmforge.metrics.loggers import METRICS_FILE, JsonlLogger, read_metrics
from llmforge.metrics.meters import Record
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.storage.base import Storage
from llmforge.storage.uri import join_key
from llmforge.train.channel import Event

logger = logging.getLogger(__name__)


class RunRecord:
    """Takes the events of one run. `storage` is rooted at the run's folder."""

    def __init__(self, storage: Storage, display: ProgressDisplay, timer: PhaseTimer) -> None:
        self._storage = storage
        self._display = display
        self._timer = timer
        self._folder = tempfile.TemporaryDirectory(prefix="llmforge-run-")
        self._path = Path(self._folder.name) / METRICS_FILE
        self._logger = JsonlLogger(self._path)
        self._records: Sequence[Record] | None = None
        self._has_failed = False
        self.is_stopped = False
        """Whether the workers left before the last step, as they were asked to."""

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
            case "message":
                self._display.message(event.text)
            case "started":
                self._start(event.step, event.text)
                self._display.start_training(event.step, int(event.metrics["max_steps"]))
            case "metrics":
                self._logger.log(event.metrics, event.step)
                self._display.update(event.metrics, event.step)
            case "checkpoint":
                self._display.message(f"step {event.step}: saved checkpoint {event.text}")
                self._store()
            case "failure":
                self._display.message(f"failure: {event.text}; starting the workers again")
                self._display.phase("starting workers")
                self._has_failed = True
            case "stopped":
                self.is_stopped = True

    def _start(self, step: int, checkpoint: str) -> None:
        """Go on with the records that are in the checkpoint: those of later steps belong to an attempt that is lost."""
        self._logger.close()
        if checkpoint:
            self._display.message(f"resuming {self._storage.root_uri} from step {step} ({checkpoint})")
            try:
                self._storage.download(join_key(FOLDER, checkpoint, METRICS_FILE), self._path)
            except StorageError as error:
                logger.warning("the curves up to step %d may have gaps: %s", step, error)
        elif self._has_failed:
            self._display.message("there is no checkpoint yet: training starts over")
        self._logger = JsonlLogger(self._path, append=bool(checkpoint), resume_from_step=step)

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

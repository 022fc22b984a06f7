"""What is kept and shown of a run while it lasts: `metrics.jsonl`, `samples.jsonl`, the progress display, the phases of
its start.

In: the events that workers send. Out: the display, and files in the run's folder. One writer, in the driver, so that a
restarted worker group continues the same file.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmforge.checkpoint.names import FOLDER
from llmforge.checkpoint.store import CheckpointStore
from llmforge.errors import StorageError
from llmforge.metrics.loggers import METRICS_FILE, JsonlLogger, read_metrics
from llmforge.metrics.meters import Record
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.metrics.samples import SAMPLES_FILE, Sample, SampleLog, samples_text
from llmforge.storage.base import Storage
from llmforge.storage.uri import join_key
from llmforge.train.channel import Event
from llmforge.train.services import RunServices

logger = logging.getLogger(__name__)


class RunRecord:
    """Takes the events of one run. `storage` is rooted at the run's folder."""

    def __init__(
        self, storage: Storage, display: ProgressDisplay, timer: PhaseTimer, services: RunServices | None = None
    ) -> None:
        self._storage = storage
        self._display = display
        self._timer = timer
        self._services = services or RunServices(CheckpointStore(storage))
        self._folder = tempfile.TemporaryDirectory(prefix="llmforge-run-")
        self._path = Path(self._folder.name) / METRICS_FILE
        self._logger = JsonlLogger(self._path)
        self._samples_path = self._path.with_name(SAMPLES_FILE)
        self._sample_log = SampleLog(self._samples_path)
        self._samples: Sequence[Sample] | None = None
        self._records: Sequence[Record] | None = None
        self._has_failed = False
        self.is_stopped = False
        """Whether the workers left before the last step, as they were asked to."""
        self.is_waiting = False
        """Whether no worker can start for want of devices."""

    @property
    def records(self) -> Sequence[Record]:
        """All metric records of the run, also when it is closed."""
        return read_metrics(self._path) if self._records is None else self._records

    @property
    def samples(self) -> Sequence[Sample]:
        """All answers to the prompts of the job, also when it is closed."""
        return self._sample_log.samples() if self._samples is None else self._samples

    def handle(self, event: Event) -> None:
        """Show and keep one event."""
        self.is_waiting = event.kind == "waiting"
        match event.kind:
            case "phase":
                self._display.phase(event.text)
            case "timing":
                self._timer.add(event.text, event.metrics["seconds"])
            case "message" | "waiting":
                self._display.message(event.text)
            case "started":
                self._start(event.step, event.text)
                self._display.start_training(event.step, int(event.metrics["max_steps"]))
            case "metrics":
                self._logger.log(event.metrics, event.step)
                self._services.log(event.metrics, event.step)
                self._display.update(event.metrics, event.step)
            case "samples":
                self._display.message(samples_text(event.samples, self.samples))
                self._sample_log.log(event.samples)
            case "checkpoint":
                self._display.message(f"step {event.step}: saved checkpoint {event.text}")
                self._store()
                self._services.saved(event.text)
            case "failure":
                self._display.message(f"failure: {event.text}; starting the workers again")
                self._display.phase("starting workers")
                self._has_failed = True
            case "stopped":
                self.is_stopped = True
                self._services.stopped()

    def _start(self, step: int, checkpoint: str) -> None:
        """Go on with the records that are in the checkpoint: those of later steps belong to an attempt that is lost."""
        self.is_stopped = False
        self._logger.close()
        if checkpoint:
            self._display.message(f"resuming {self._storage.root_uri} from step {step} ({checkpoint})")
            self._take_over(step, checkpoint)
        elif self._has_failed:
            self._display.message("there is no checkpoint yet: training starts over")
        self._logger = JsonlLogger(self._path, append=bool(checkpoint), resume_from_step=step)
        self._sample_log = SampleLog(self._samples_path, append=bool(checkpoint), resume_from_step=step)
        self._services.begin(step, self.records)

    def _take_over(self, step: int, checkpoint: str) -> None:
        folder = join_key(FOLDER, checkpoint)
        try:
            self._storage.download(join_key(folder, METRICS_FILE), self._path)
            if any(file.key == join_key(folder, SAMPLES_FILE) for file in self._storage.list(folder)):
                self._storage.download(join_key(folder, SAMPLES_FILE), self._samples_path)
        except StorageError as error:
            logger.warning("the curves and answers up to step %d may have gaps: %s", step, error)

    def close(self) -> None:
        """Store what has been recorded; also after a failure."""
        self._logger.close()
        with self._folder:
            self._records, self._samples = self.records, self.samples
            self._store()

    def _store(self) -> None:
        """A checkpoint is there without its curves too: what fails here must not end a run, nor hide why it ended."""
        for path in (self._path, self._samples_path):
            try:
                if path.exists():
                    self._storage.upload(path, path.name)
            except StorageError as error:
                logger.warning("%s was not stored: %s", path.name, error)

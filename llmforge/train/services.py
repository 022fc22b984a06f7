"""The logging services of a run: opened before its workers start, told what happens, closed when it ends.

In: a job, and what `RunRecord` hands on. Out: metrics, parameters and addresses in the services that the job names,
under the same run there when the run goes on. `loggers.json` in the run's folder remembers the ids of these runs, and
how far each has got.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, JsonValue, RootModel, ValidationError

from llmforge.checkpoint.names import FOLDER
from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.loggers import LoggerConfig, MlflowLogger, TensorboardLogger, WandbLogger
from llmforge.config.secrets import redact
from llmforge.errors import CheckpointError, LoggerError, StorageError
from llmforge.metrics.loggers import METRICS_FILE
from llmforge.metrics.meters import Record
from llmforge.metrics.mlflow_service import MlflowService, check_server
from llmforge.metrics.service_checks import check_logger, mlflow_address, wandb_is_online
from llmforge.metrics.services import CLOSE_SECONDS, Measured, Param, RunFacts, Service, ServiceThread, Status
from llmforge.metrics.tensorboard_service import TensorboardService
from llmforge.metrics.wandb_service import WandbService
from llmforge.storage.base import NotFoundError, Storage, open_storage, read_bytes, write_bytes
from llmforge.storage.uri import is_s3, join_uri, local_path
from llmforge.train.run_report import REPORT_FILE

logger = logging.getLogger(__name__)

LOGGERS_FILE = "loggers.json"
INTERRUPTED_CLOSE_SECONDS = 3.0
"""For each service, where a person leaves at once."""


class _Remembered(BaseModel):
    """What a later start must know of one service."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str = ""
    sent: dict[str, int] = {}


_Memory = RootModel[dict[str, _Remembered]]


@dataclass(frozen=True)
class _Opened:
    """One run in one service."""

    service: Service
    sent: Mapping[str, int]
    run_id: str
    place: str
    """Where a person finds it."""


def check_services(job: JobConfig) -> None:
    """Whether the services of a job can be used from here. Raises LoggerError."""
    for config in job.loggers:
        check_logger(config, os.environ)
        if isinstance(config, MlflowLogger):
            check_server(mlflow_address(config, os.environ))


class RunServices:
    """All services of one run. As a context it closes them with how the run ended."""

    def __init__(self, checkpoints: CheckpointStore, *, close_seconds: float = CLOSE_SECONDS) -> None:
        self._checkpoints = checkpoints
        self._close_seconds = close_seconds
        self._threads: dict[str, ServiceThread] = {}
        self._run_ids: dict[str, str] = {}
        self._closed_at_the_end = ExitStack()
        self._is_stopped = False

    def open(self, job: JobConfig, *, resume: bool, tell: Callable[[str], None]) -> None:
        """Open every service that the job names; `resume`: go on with the same runs. Raises LoggerError."""
        memory = self._remembered() if resume else {}
        facts = RunFacts(str(job.run_name), params_of(job), self._links())
        for config in job.loggers:
            name = _place_name(config)
            known = memory.get(name, _Remembered())
            try:
                opened = self._open(config, known, facts)
            except LoggerError:
                self._close("failed", self._close_seconds)
                raise
            tell(f"metrics go to {config.provider} as well: {redact(opened.place)}")
            self._run_ids[name] = opened.run_id
            self._threads[name] = ServiceThread(config.provider, opened.service, opened.sent)
        self._remember()

    def _open(self, config: LoggerConfig, known: _Remembered, facts: RunFacts) -> _Opened:
        match config:
            case TensorboardLogger():
                uri = self._tensorboard_uri(config, facts.name)
                return _Opened(self._tensorboard(uri, facts), known.sent, "", uri)
            case WandbLogger():
                run_id = known.run_id or secrets.token_hex(4)
                is_online = wandb_is_online(config, os.environ)
                wandb = WandbService(config.provider_config, run_id, facts, is_online=is_online)
                return _Opened(wandb, known.sent, run_id, wandb.place)
            case MlflowLogger():
                address = mlflow_address(config, os.environ)
                mlflow = MlflowService(config.provider_config, address, known.run_id or None, facts)
                return _Opened(mlflow, mlflow.sent, mlflow.run_id, mlflow.place)

    def _tensorboard_uri(self, config: TensorboardLogger, run_name: str) -> str:
        given = config.provider_config.log_dir
        return join_uri(given, run_name) if given else join_uri(self._storage.root_uri, "tensorboard")

    def _tensorboard(self, uri: str, facts: RunFacts) -> TensorboardService:
        if not is_s3(uri):
            return TensorboardService(local_path(uri), facts)
        storage = open_storage(uri)
        scratch = self._closed_at_the_end.enter_context(tempfile.TemporaryDirectory(prefix="llmforge-tensorboard-"))
        return TensorboardService(Path(scratch), facts, lambda path: storage.upload(path, path.name))

    @property
    def _storage(self) -> Storage:
        return self._checkpoints.storage

    def begin(self, step: int, records: Sequence[Record]) -> None:
        """Workers go on after `step`; `records` are those of the run up to there."""
        self._is_stopped = False
        now = time.time()
        for thread in self._threads.values():
            thread.begin(step, [_measured(record, now) for record in records])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One metric record."""
        record = Measured(step, time.time(), dict(metrics))
        for thread in self._threads.values():
            thread.log(record)

    def saved(self, checkpoint: str) -> None:
        """A checkpoint is complete."""
        if self._threads:
            self._link({"latest_checkpoint": join_uri(self._storage.root_uri, FOLDER, checkpoint)})
            self._remember()

    def stopped(self) -> None:
        """The workers have left before the last step, as they were asked to."""
        self._is_stopped = True

    def __enter__(self) -> RunServices:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._close("stopped" if self._is_stopped else "finished", self._close_seconds)
        elif issubclass(kind, KeyboardInterrupt):
            self._close("stopped", min(self._close_seconds, INTERRUPTED_CLOSE_SECONDS))
        else:
            self._close("failed", self._close_seconds)

    def _close(self, status: Status, close_seconds: float) -> None:
        if self._threads:
            self._link(self._checkpoint_links())
        for thread in self._threads.values():
            thread.finish(status, close_seconds)
        self._remember()
        self._closed_at_the_end.close()

    def _link(self, links: Mapping[str, str]) -> None:
        for thread in self._threads.values():
            thread.link(links)

    def _links(self) -> dict[str, str]:
        files = {"job": "resolved_job.yaml", "metrics": METRICS_FILE, "report": REPORT_FILE}
        root = self._storage.root_uri
        return {"run": root, **{name: join_uri(root, file) for name, file in files.items()}}

    def _checkpoint_links(self) -> dict[str, str]:
        try:
            found = {name: self._checkpoints.resolve(name).name for name in ("best", "latest")}
        except (CheckpointError, StorageError) as error:
            logger.info("no address of a checkpoint goes to the loggers: %s", error)
            return {}
        root = self._storage.root_uri
        return {f"{name}_checkpoint": join_uri(root, FOLDER, checkpoint) for name, checkpoint in found.items()}

    def _remembered(self) -> dict[str, _Remembered]:
        try:
            return _Memory.model_validate_json(read_bytes(self._storage, LOGGERS_FILE)).root
        except NotFoundError:
            return {}
        except ValidationError as error:
            logger.warning("%s is damaged, so loggers begin new runs: %s", LOGGERS_FILE, error)
            return {}

    def _remember(self) -> None:
        if not self._threads:
            return
        memory = {
            name: _Remembered(run_id=self._run_ids[name], sent=thread.sent) for name, thread in self._threads.items()
        }
        try:
            write_bytes(self._storage, LOGGERS_FILE, _Memory(memory).model_dump_json(indent=1).encode())
        except StorageError as error:
            logger.warning("%s was not stored, so loggers may begin new runs on --resume: %s", LOGGERS_FILE, error)


def params_of(job: JobConfig) -> dict[str, Param]:
    """The job with dotted keys; a list is one value, as JSON."""
    return dict(_flat(job.model_dump(mode="json"), ""))


def _flat(value: JsonValue, path: str) -> Iterator[tuple[str, Param]]:
    match value:
        case dict() if value:
            for key, child in value.items():
                yield from _flat(child, f"{path}.{key}" if path else key)
        case dict() | list():
            yield path, redact(json.dumps(value, ensure_ascii=False))
        case str():
            yield path, redact(value)
        case _:
            yield path, value


def _place_name(config: LoggerConfig) -> str:
    """The place where runs are: a job that names another one begins a new run there."""
    match config:
        case TensorboardLogger():
            words = ["tensorboard", config.provider_config.log_dir]
        case WandbLogger():
            words = ["wandb", config.provider_config.entity, config.provider_config.project]
        case MlflowLogger():
            words = ["mlflow", config.provider_config.tracking_uri, config.provider_config.experiment_name]
    return " ".join(word or "-" for word in words)


def _measured(record: Record, at: float) -> Measured:
    return Measured(int(record["step"]), at, {key: value for key, value in record.items() if key != "step"})

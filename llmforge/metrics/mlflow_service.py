"""A run on an MLflow server.

A run that goes on is the same run there. MLflow cannot take values back, and it keeps the first value of a parameter:
what has changed since is in `resolved_job.yaml`, to which the run links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from llmforge.config.loggers import MlflowSettings
from llmforge.config.secrets import redact
from llmforge.errors import LoggerError
from llmforge.metrics.services import Measured, RunFacts, Status

_STATUSES: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of its own accord the client waits for minutes, and prints; here a thread tries again while the run lasts."""
_MOST_PARAMS = 100
_MOST_METRICS = 1000
_LONGEST_PARAM = 6000
"""MLflow's bounds of one request, and of a value."""


def check_server(address: str) -> None:
    """Ask the server for something small. Raises LoggerError where it does not answer, or refuses."""
    from mlflow.tracking import MlflowClient

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with _explained(address):
        MlflowClient(tracking_uri=address).search_experiments(max_results=1)


class MlflowService:
    """The run `run_id` of an experiment, or a new one where it is None."""

    forgets_lost_steps = False

    def __init__(self, settings: MlflowSettings, tracking_uri: str, run_id: str | None, facts: RunFacts) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._uri = tracking_uri
        with _explained(self._uri):
            self._client = MlflowClient(tracking_uri=tracking_uri)
            if run_id is None:
                tags = {**settings.tags, "mlflow.source.name": "llmforge"}
                experiment = self._experiment_id(settings.experiment_name)
                run = self._client.create_run(experiment, tags=tags, run_name=settings.name or facts.name)
            else:
                run = self._client.get_run(run_id)
            self.run_id: str = run.info.run_id
            new = (
                Param(key, str(value)[:_LONGEST_PARAM])
                for key, value in facts.params.items()
                if key not in run.data.params
            )
            while params := list(islice(new, _MOST_PARAMS)):
                self._client.log_batch(self.run_id, params=params)
            self.sent = {key: self._last_step(key) for key in run.data.metrics}
        self.link(facts.links)
        self.place = f"{tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{self.run_id}"

    def begin(self, step: int) -> None:
        with _explained(self._uri):
            self._client.update_run(self.run_id, status="RUNNING")

    def log(self, records: Sequence[Measured]) -> None:
        from mlflow.entities import Metric

        metrics = (
            Metric(key, value, int(record.at * 1000), record.step)
            for record in records
            for key, value in record.values.items()
        )
        with _explained(self._uri):
            while batch := list(islice(metrics, _MOST_METRICS)):
                self._client.log_batch(self.run_id, metrics=batch)

    def link(self, links: Mapping[str, str]) -> None:
        with _explained(self._uri):
            for key, uri in links.items():
                self._client.set_tag(self.run_id, f"llmforge.{key}", uri)

    def finish(self, status: Status) -> None:
        with _explained(self._uri):
            self._client.set_terminated(self.run_id, _STATUSES[status])

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
        if found.lifecycle_stage == "deleted":
            raise LoggerError(f"mlflow: experiment {name} was deleted; restore it, or name another one")
        return str(found.experiment_id)

    def _last_step(self, key: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self.run_id, key)), default=-1)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise LoggerError(
            f"mlflow: {redact(f'{address}: {error}')[:400]}; check tracking_uri and whether the server runs, and"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, if it asks for them"
        ) from error

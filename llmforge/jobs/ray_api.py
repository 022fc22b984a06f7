"""The HTTP interface of a Ray cluster, as far as it is needed here: jobs, packages of files, nodes.

Ray's own client needs Ray, which is large; the interface behind it is documented and kept stable:
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html. What is asked of nodes and of the
autoscaler is not part of that document, and is only used to refuse early what could never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from llmforge.errors import ClusterError
from llmforge.jobs.address import ClusterAddress

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0
UPLOAD_SECONDS = 900.0
MAX_PACKAGE_BYTES = 100 * 1024**2
"""Requests from this size on are refused by Ray's dashboard (`DASHBOARD_CLIENT_MAX_SIZE`)."""
_MAX_NODES = 10_000
_NO_TYPE = re.compile("node_[0-9a-f]+")
_NUM_TOLD_CHARACTERS = 500

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ENDED: tuple[JobStatus, ...] = ("STOPPED", "SUCCEEDED", "FAILED")


class UnreachableError(ClusterError):
    """Nothing answers at the address: it may later."""


class _RayModel(BaseModel):
    """Fields that are not known are those of another version of Ray."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DriverInfo(_RayModel):
    """The process that runs a job's command."""

    pid: int
    node_ip_address: str


class RayJob(_RayModel):
    """One submission, as Ray tells it; times are milliseconds since the epoch."""

    submission_id: str | None = None
    status: JobStatus
    entrypoint: str = ""
    message: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: Mapping[str, str] | None = None
    runtime_env: Mapping[str, JsonValue] | None = None
    driver_info: DriverInfo | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None


class JobRequest(_RayModel):
    """A command for the cluster."""

    submission_id: str
    entrypoint: str
    runtime_env: Mapping[str, JsonValue] = Field(default_factory=dict)
    metadata: Mapping[str, str] = Field(default_factory=dict)
    entrypoint_label_selector: Mapping[str, str] | None = None


class _Node(_RayModel):
    state: str
    resources_total: Mapping[str, float] = Field(default_factory=dict)


_Answer = TypeVar("_Answer")
_JOB = TypeAdapter(RayJob)
_JOBS = TypeAdapter(list[RayJob])
_NODES = TypeAdapter(list[_Node])


class RayApi:
    """Requests to one dashboard: `UnreachableError` where nothing answers, `ClusterError` where it refuses."""

    def __init__(self, address: ClusterAddress) -> None:
        self.address = address
        # What changes nothing may be asked twice.
        retries = urllib3.Retry(total=2, connect=0, backoff_factor=0.2, allowed_methods=["GET"])
        self._headers = {"User-Agent": "llmforge", **address.headers}
        proxy = find_proxy(address.url)
        self._pool = (
            urllib3.PoolManager(retries=retries) if proxy is None else urllib3.ProxyManager(proxy, retries=retries)
        )

    def jobs(self) -> list[RayJob]:
        """All submissions that the cluster remembers, in no order."""
        return [job for job in self._read(_JOBS, "/api/jobs/") if job.submission_id is not None]

    def job(self, submission_id: str) -> RayJob:
        """One submission."""
        return self._read(_JOB, _job_path(submission_id))

    def submit(self, request: JobRequest) -> None:
        """Start a command. Raises `ClusterError` where there has been a submission of this id."""
        self._ask("POST", "/api/jobs/", json_body=request.model_dump(exclude_none=True))

    def stop(self, submission_id: str) -> None:
        """Send SIGTERM to a job, and SIGKILL when its time is over; returns at once."""
        self._ask("POST", f"{_job_path(submission_id)}/stop")

    def log(self, submission_id: str) -> str:
        """All that a job has printed so far."""
        answer = self._json("GET", f"{_job_path(submission_id)}/logs")
        return str(answer.get("logs", "")) if isinstance(answer, dict) else ""

    def has_package(self, name: str) -> bool:
        """Whether the cluster keeps a package of files; it then does so for some minutes more."""
        return self._ask("GET", f"/api/packages/gcs/{name}", allowed=(200, 404)).status == 200

    def upload_package(self, name: str, content: bytes) -> None:
        """Give a package of files to the cluster."""
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=UPLOAD_SECONDS)
        self._ask("PUT", f"/api/packages/gcs/{name}", body=content, timeout=timeout)

    def node_resources(self) -> list[Mapping[str, float]]:
        """What each living node has, used or not."""
        answer = self._json("GET", f"/api/v0/nodes?limit={_MAX_NODES}")
        nodes = _descend(answer, ("data", "result", "result"))
        try:
            return [node.resources_total for node in _NODES.validate_python(nodes) if node.state == "ALIVE"]
        except ValidationError as error:
            raise self._not_ray() from error

    def has_autoscaler(self) -> bool:
        """Whether something may add nodes by itself.

        The older autoscaler also runs, to no effect, on a cluster that was started by hand, where each node is of a
        type of its own. The newer one (KubeRay) leaves no report there, only a text that is made when it is asked for.
        """
        status = _descend(self._json("GET", "/api/cluster_status"), ("data", "clusterStatus"))
        if status is None:
            text = _descend(self._json("GET", "/api/cluster_status?format=1"), ("data", "clusterStatus"))
            return "Autoscaler status" in str(text)
        types = _descend(status, ("autoscalerReport", "nodeTypeMapping"))
        return isinstance(types, dict) and not all(_NO_TYPE.fullmatch(str(one)) for one in types.values())

    def _read(self, adapter: TypeAdapter[_Answer], path: str) -> _Answer:
        try:
            return adapter.validate_json(self._ask("GET", path).data)
        except ValidationError as error:
            raise self._not_ray() from error

    def _json(self, method: str, path: str) -> JsonValue:
        try:
            answer: JsonValue = json.loads(self._ask(method, path).data)
        except ValueError as error:
            raise self._not_ray() from error
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json_body: Mapping[str, object] | None = None,
        body: bytes | None = None,
        allowed: Sequence[int] = (200,),
        timeout: urllib3.Timeout | None = None,
    ) -> urllib3.BaseHTTPResponse:
        timeout = timeout or urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS)
        url = f"{self.address.url}{path}"
        try:
            if json_body is not None:
                answer = self._pool.request(method, url, json=json_body, headers=self._headers, timeout=timeout)
            else:
                answer = self._pool.request(method, url, body=body, headers=self._headers, timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(
                f"{self.address.url}: no answer ({_reason(error)}); is the cluster up, and is this the address of its"
                " dashboard, by default on port 8265?"
            ) from error
        if answer.status in (401, 403):
            raise ClusterError(
                f"{self.address.url}: the cluster wants to know who asks (HTTP {answer.status}); set RAY_AUTH_TOKEN, or"
                " RAY_AUTH_TOKEN_PATH to a file that holds its token"
            )
        if answer.status not in allowed:
            raise ClusterError(f"{url}: the cluster refused (HTTP {answer.status}): {_last_words(answer.data)}")
        return answer

    def _not_ray(self) -> ClusterError:
        return ClusterError(
            f"{self.address.url}: what answers there is no Ray dashboard of a version that is known; check the address"
        )


def find_proxy(url: str) -> str | None:
    """The proxy that the environment (HTTP_PROXY, NO_PROXY, ...) has for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _descend(answer: JsonValue, keys: Sequence[str]) -> JsonValue:
    for key in keys:
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What lies below the retries, without addresses of objects."""
    cause: BaseException = getattr(error, "reason", None) or error
    return str(cause).rpartition(": ")[2] or type(cause).__name__


def _last_words(content: bytes) -> str:
    """Ray answers with a traceback, whose last line says what is wrong."""
    lines = content.decode("utf-8", errors="replace").strip().splitlines() or ["without a reason"]
    return lines[-1][:_NUM_TOLD_CHARACTERS]

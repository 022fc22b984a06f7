"""`llmforge submit` and `llmforge resume`: from a job file to a run on a cluster.

What can be found wrong on this machine is told before the cluster is asked, and what shows from the cluster's own words
before anything is sent. With `--json` one object on stdout:

    {"run", "submission_id", "attempt", "address", "run_uri", "package"}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmforge.cli.check_files import check_files
from llmforge.cli.places import cache_folder
from llmforge.cli.watch import watch
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig, LoadedJob, parse_job, read_job_text
from llmforge.config.resolve import default_run_name
from llmforge.config.secrets import redact
from llmforge.errors import ClusterError, ConfigError, Problem
from llmforge.jobs.address import find_address
from llmforge.jobs.fit import ClusterSize, check_size, find_passing_bases, find_unreachable_output
from llmforge.jobs.orders import Order, check_is_new, read_runtime_env, request_of, resume_of
from llmforge.jobs.package import Package, find_kept, keep, pack
from llmforge.jobs.ray_api import JobRequest, RayApi
from llmforge.jobs.shipment import Shipment, is_on_cluster, ship
from llmforge.jobs.submissions import OUTPUT, Submission, newest_of, submissions_of
from llmforge.metrics.summary import bytes_text
from llmforge.storage.uri import join_uri


@dataclass(frozen=True)
class SubmitOptions:
    """What the command line says beside the job."""

    address: str | None
    cluster_paths: Sequence[str]
    runtime_env: str | None
    resume: bool
    wait: bool
    as_json: bool


@dataclass(frozen=True)
class _Job:
    """A job file with its overrides, checked."""

    path: str
    text: str
    overrides: Sequence[str]
    loaded: LoadedJob

    @property
    def config(self) -> JobConfig:
        return self.loaded.job


def run_submit(path: str, overrides: Sequence[str], options: SubmitOptions) -> int:
    """Submit a job, and with `wait` follow it; returns the exit code. Raises `LlmforgeError`."""
    api = RayApi(find_address(options.address, os.environ))
    job = _load(path, overrides, options)
    shipment = ship(job.config, options.cluster_paths)
    for warning in find_passing_bases(job.config, options.cluster_paths):
        print(f"warning: {warning}", file=sys.stderr)
    size = ClusterSize(api.node_resources(), api.has_autoscaler())
    _refuse(job, find_unreachable_output(job.config, size, options.cluster_paths))
    for warning in check_size(job.config, size):
        print(f"warning: {warning}", file=sys.stderr)
    order = _order(job, shipment, options)
    submissions = submissions_of(api.jobs())
    if job.config.run_name is None:
        check_is_new(order, submissions)
    request = request_of(order, submissions)
    keep(order.package, _kept_packages())
    if not api.has_package(order.package.name):
        api.upload_package(order.package.name, order.package.content)
    if not options.as_json:
        size_text = bytes_text(len(order.package.content))
        print(f"sent {job.path} and {len(shipment.files)} files, {size_text} compressed", file=sys.stderr)
    return _start(api, request, order.package, wait=options.wait, as_json=options.as_json)


def run_resume(run: str, address: str | None, *, wait: bool, as_json: bool) -> int:
    """Submit a run once more as it was; returns the exit code. Raises `LlmforgeError`."""
    api = RayApi(find_address(address, os.environ))
    newest = newest_of(submissions_of(api.jobs()), run, api.address.url)
    request = resume_of(newest)
    name = str(request.runtime_env.get("working_dir", "")).rpartition("/")[2]
    package = find_kept(name, _kept_packages())
    if not api.has_package(name):
        if package is None:
            raise ClusterError(
                f"{run}: neither the cluster nor this machine has the files any more that it was submitted with;"
                f" submit it from its job file: llmforge submit JOB.yaml run_name={run} --resume"
            )
        api.upload_package(name, package.content)
    return _start(api, request, package, wait=wait, as_json=as_json)


def _load(path: str, overrides: Sequence[str], options: SubmitOptions) -> _Job:
    """The job, when all that it names on this machine is there. Raises ConfigError with every problem."""
    text = read_job_text(path)
    job = _Job(path, text, overrides, parse_job(text, path, overrides))
    findings = [one for one in check_files(job.config) if not is_on_cluster(one.message, options.cluster_paths)]
    _refuse(job, findings)
    for number, line in enumerate(text.splitlines(), start=1):
        if redact(line) != line:
            found = "found what looks like a secret, allowed is none, not even in a comment; remove it"
            raise ConfigError(str(Problem(found, source=path, line=number)))
    if options.resume and job.config.run_name is None:
        raise ConfigError("--resume: found no run_name; name the run to go on with: run_name=...")
    return job


def _refuse(job: _Job, findings: Sequence[Finding]) -> None:
    if findings:
        raise ConfigError.from_problems(job.loaded.locate(findings))


def _order(job: _Job, shipment: Shipment, options: SubmitOptions) -> Order:
    config = job.config
    file = options.runtime_env
    overrides = [word for word in job.overrides if not word.startswith("run_name=")]
    return Order(
        run=config.run_name or default_run_name(config, datetime.now()),
        words=[*overrides, *shipment.overrides],
        package=pack(job.text, shipment.files),
        output_dir=config.output_dir,
        storage_timeout_seconds=config.storage_timeout_seconds,
        runtime_env={} if file is None else read_runtime_env(read_job_text(file), file),
        resume=options.resume,
    )


def _start(api: RayApi, request: JobRequest, package: Package | None, *, wait: bool, as_json: bool) -> int:
    api.submit(request)
    submission = submissions_of([api.job(request.submission_id)])[0]
    _tell(api, submission, package, as_json=as_json)
    if wait:
        return watch(api, submission)
    if not as_json:
        _tell_what_next(submission.run)
    return 0


def _tell(api: RayApi, submission: Submission, package: Package | None, *, as_json: bool) -> None:
    run = submission.run
    run_uri = join_uri(submission.metadata(OUTPUT), run)
    if as_json:
        found = {
            "run": run,
            "submission_id": submission.submission_id,
            "attempt": submission.attempt,
            "address": api.address.url,
            "run_uri": run_uri,
            "package": None if package is None else package.name,
        }
        print(json.dumps(found), flush=True)
        return
    print(run, flush=True)
    print(f"its folder: {run_uri}", file=sys.stderr)


def _tell_what_next(run: str) -> None:
    for purpose, command in {
        "follow": f"llmforge logs -f {run}",
        "look": f"llmforge status {run}",
        "save and stop": f"llmforge stop {run}",
        "go on": f"llmforge resume {run}",
    }.items():
        print(f"{purpose}: {command}", file=sys.stderr)


def _kept_packages() -> Path:
    return cache_folder() / "submitted"

"""What is asked of a cluster for a job: the command, its environment, its name.

In: a checked job's package and words, or an earlier submission. Out: a `JobRequest`. The names of run and submission
are decided here, before anything runs, so that asking twice is noticed. No environment of this machine goes along.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from llmforge import __version__
from llmforge.config.secrets import find_secrets
from llmforge.config.yaml_file import parse_yaml
from llmforge.errors import ClusterError, ConfigError
from llmforge.jobs.package import Package
from llmforge.jobs.ray_api import JobRequest
from llmforge.jobs.submissions import ATTEMPT, CONTENT, OUTPUT, RUN, Submission

STOP_SECONDS_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long Ray lets a job go on that it has sent SIGTERM; its default of 3 s is too short to save anything."""
SAVE_SECONDS = 900
"""For the step under way and for copying, beside the patience of the job with its object store."""
VERSION = "llmforge_version"


@dataclass(frozen=True)
class Order:
    """A job that is ready to be submitted."""

    run: str
    words: Sequence[str]
    """`key=value`, laid over `job.yaml` of the package."""
    package: Package
    output_dir: str
    storage_timeout_seconds: float
    runtime_env: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the user gives beside the files."""
    resume: bool = False

    @property
    def content(self) -> str:
        """Sixteen hexadecimal digits that are the same for the same job and the same data, whatever the run's name."""
        return hashlib.sha256("\n".join([self.package.name, *self.words]).encode()).hexdigest()[:16]


def request_of(order: Order, submissions: Sequence[Submission]) -> JobRequest:
    """The first attempt of a run, or with `resume` any. Raises `ClusterError` where the name is taken."""
    earlier = [one for one in submissions if one.run == order.run]
    active = next((one for one in earlier if one.is_active), None)
    if active is not None:
        raise ClusterError(f"run_name: {order.run} is {active.state} already; {_what_to_do(order.run)}")
    if earlier and not order.resume:
        raise ClusterError(
            f"run_name: {order.run} has been submitted before and is {earlier[-1].state}; go on with `llmforge resume"
            f" {order.run}`, or choose another run_name"
        )
    attempt = 1 + max((one.attempt for one in earlier), default=0)
    words = ["llmforge", "train", "job.yaml", f"run_name={order.run}", *order.words, "--submitted-by", __version__]
    stop_seconds = {STOP_SECONDS_VARIABLE: str(int(SAVE_SECONDS + order.storage_timeout_seconds))}
    own_variables = order.runtime_env.get("env_vars")
    variables: Mapping[str, JsonValue] = stop_seconds | (own_variables if isinstance(own_variables, dict) else {})
    return JobRequest(
        submission_id=_submission_id(order.run, attempt),
        entrypoint=shlex.join(["exec", *words, *(["--resume"] if order.resume else [])]),
        runtime_env={**order.runtime_env, "env_vars": dict(variables), "working_dir": order.package.uri},
        metadata={
            RUN: order.run,
            ATTEMPT: str(attempt),
            CONTENT: order.content,
            OUTPUT: order.output_dir,
            VERSION: __version__,
        },
    )


def resume_of(newest: Submission) -> JobRequest:
    """One more attempt of a run, with all that the newest one was given. Raises `ClusterError` while that one runs."""
    if newest.is_active:
        raise ClusterError(f"{newest.run} is {newest.state}; {_what_to_do(newest.run)}")
    attempt = newest.attempt + 1
    entrypoint = newest.job.entrypoint.removesuffix(" --resume") + " --resume"
    return JobRequest(
        submission_id=_submission_id(newest.run, attempt),
        entrypoint=entrypoint,
        runtime_env=newest.job.runtime_env or {},
        metadata={**(newest.job.metadata or {}), ATTEMPT: str(attempt)},
    )


def check_is_new(order: Order, submissions: Sequence[Submission]) -> None:
    """Raise `ClusterError` where the same job with the same files is running under another name."""
    same = next((one for one in submissions if one.is_active and one.content == order.content), None)
    if same is not None:
        raise ClusterError(
            f"the same job with the same files is {same.state} as {same.run}; {_what_to_do(same.run)}; to run it a"
            " second time all the same, give it a run_name"
        )


def kill_of(submission: Submission, number: int) -> JobRequest | None:
    """A command that ends the driver of a job at once, on its node; None where there is no driver yet."""
    driver, node_id = submission.job.driver_info, submission.job.driver_node_id
    if driver is None or node_id is None:
        return None
    # The number may be another process's by now; only the driver of this very submission carries its name.
    is_driver = f"grep -qzF {shlex.quote(submission.submission_id)} /proc/{driver.pid}/environ"
    return JobRequest(
        submission_id=f"{submission.submission_id}--kill-{number}",
        entrypoint=f"{is_driver} && kill -KILL {driver.pid}",
        entrypoint_label_selector={"ray.io/node-id": node_id},
    )


def read_runtime_env(text: str, source: str) -> Mapping[str, JsonValue]:
    """What a file adds to the environment of a job. Raises ConfigError with every problem."""
    document = parse_yaml(text, source)
    data = document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: found no mapping, allowed is a Ray runtime environment, such as `pip: [package]`")
    problems = [str(problem) for problem in document.problems]
    problems += [f"{source}: {'.'.join(map(str, one.path))}: {one.message}" for one in find_secrets(data)]
    if "working_dir" in data:
        problems.append(f"{source}: working_dir: not allowed: the files of the job are the working folder; remove it")
    for key in ("pip", "uv", "conda"):
        if isinstance(data.get(key), str):
            problems.append(f"{source}: {key}: found the name of a file, allowed is what stands in it; write it here")
    modules = data.get("py_modules") or []
    if any("://" not in str(module) for module in modules):
        problems.append(f"{source}: py_modules: found a local path, allowed are addresses such as s3://bucket/code.zip")
    if problems:
        raise ConfigError("\n".join(problems))
    return data


def _submission_id(run: str, attempt: int) -> str:
    # Not with a dot: Ray names loggers after submissions, and what it logs for a.2 would go to the log of a, too.
    return run if attempt == 1 else f"{run}--{attempt}"


def _what_to_do(run: str) -> str:
    return f"look with `llmforge status {run}`, follow with `llmforge logs -f {run}`, end with `llmforge stop {run}`"

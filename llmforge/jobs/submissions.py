"""The runs of a cluster, as its job table tells them: names, states, which submission is the newest of a run.

In: jobs of Ray. Out: those that llmforge has submitted, or an error that names them. All that is known of a run stands
in the metadata of its submissions; nothing is kept on the machine that submits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import Literal

from llmforge.errors import ClusterError
from llmforge.jobs.ray_api import RayJob

RUN, ATTEMPT, CONTENT, OUTPUT = "llmforge_run", "llmforge_attempt", "llmforge_content", "llmforge_output_dir"
"""Keys of the metadata of a submission."""

State = Literal["pending", "running", "done", "stopped", "failed"]
EXIT_CODES: dict[State, int] = {"done": 0, "failed": 1, "pending": 3, "running": 3, "stopped": 4}
USER_ERROR_EXIT = 2
"""Of llmforge here and in the cluster: the job, the command or the cluster has to be changed."""
_SIGNAL_EXITS = (130, 143)
_COMMAND_NOT_FOUND = 127
_NUM_NAMED_RUNS = 5


@dataclass(frozen=True)
class Submission:
    """One attempt of a run."""

    run: str
    attempt: int
    job: RayJob

    @property
    def submission_id(self) -> str:
        """Ray's name of it."""
        assert self.job.submission_id is not None
        return self.job.submission_id

    @property
    def state(self) -> State:
        """What has become of it; a driver that a signal has ended has saved before, where there was something to."""
        match self.job.status:
            case "PENDING":
                return "pending"
            case "RUNNING":
                return "running"
            case "SUCCEEDED":
                return "done"
            case "STOPPED":
                return "stopped"
            case "FAILED":
                return "stopped" if self.job.driver_exit_code in _SIGNAL_EXITS else "failed"

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will."""
        return self.state in ("pending", "running")

    @property
    def exit_code(self) -> int:
        """What a command that asks for it ends with."""
        is_user_error = self.state == "failed" and self.job.driver_exit_code == USER_ERROR_EXIT
        return USER_ERROR_EXIT if is_user_error else EXIT_CODES[self.state]

    @property
    def content(self) -> str:
        """Names what was submitted: the package and the overrides."""
        return self.metadata(CONTENT)

    @property
    def started_at(self) -> datetime | None:
        """When it was submitted."""
        return _time(self.job.start_time)

    @property
    def ended_at(self) -> datetime | None:
        """When it ended."""
        return _time(self.job.end_time)

    @property
    def explanation(self) -> str | None:
        """Why it failed, where the log of the run cannot say so."""
        if self.state != "failed":
            return None
        if self.job.driver_exit_code == _COMMAND_NOT_FOUND:
            return (
                "the cluster has no llmforge: install llmforge[train] in its image, or name an environment that has"
                " it by --runtime-env"
            )
        return self.job.message if self.job.driver_exit_code is None else None

    def metadata(self, key: str) -> str:
        """A value that was given at submission; empty where there is none."""
        return (self.job.metadata or {}).get(key, "")


def submissions_of(jobs: Iterable[RayJob]) -> list[Submission]:
    """The submissions of llmforge, the oldest first."""
    found = [
        Submission(job.metadata[RUN], int(job.metadata.get(ATTEMPT, "1")), job)
        for job in jobs
        if job.metadata is not None and RUN in job.metadata
    ]
    return sorted(found, key=lambda one: (one.job.start_time or 0, one.attempt))


def newest_of_each(submissions: Iterable[Submission]) -> list[Submission]:
    """The newest submission of every run."""
    return list({one.run: one for one in submissions}.values())


def newest_of(submissions: Sequence[Submission], run: str, address: str) -> Submission:
    """The newest submission of a run. Raises `ClusterError` where there is none."""
    found = newest_of_each(one for one in submissions if one.run == run)
    if found:
        return found[0]
    names = [one.run for one in newest_of_each(submissions)]
    near = get_close_matches(run, names, n=1)
    listed = ", ".join(names[: -_NUM_NAMED_RUNS - 1 : -1]) or "none"
    meant = f" (did you mean {near[0]}?)" if near else ""
    anew = f"llmforge submit JOB.yaml run_name={run} --resume"
    raise ClusterError(
        f"{run}: {address} knows no run of this name{meant}; the latest there: {listed}. A cluster forgets its jobs"
        f" when its head starts anew: `{anew}` goes on with a run all the same"
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)

"""What has become of a run, by what Ray says of its submissions."""

import pytest

from llmforge.jobs.ray_api import JobStatus, RayJob
from llmforge.jobs.submissions import ATTEMPT, RUN, Submission, newest_of, newest_of_each, submissions_of


def job(run: str, attempt: int, started: int, status: JobStatus = "RUNNING", driver_exit: int | None = None) -> RayJob:
    return RayJob(
        submission_id=f"{run}.{attempt}",
        status=status,
        start_time=started,
        driver_exit_code=driver_exit,
        metadata={RUN: run, ATTEMPT: str(attempt)},
        message="Ray's own words",
    )


@pytest.mark.parametrize(
    ("status", "driver_exit", "state", "exit_code"),
    [
        ("PENDING", None, "pending", 3),
        ("RUNNING", None, "running", 3),
        ("SUCCEEDED", 0, "done", 0),
        ("STOPPED", None, "stopped", 4),
        ("FAILED", 1, "failed", 1),
        ("FAILED", 2, "failed", 2),
        ("FAILED", 143, "stopped", 4),
        ("FAILED", None, "failed", 1),
    ],
)
def test_states_and_exit_codes(status: JobStatus, driver_exit: int | None, state: str, exit_code: int) -> None:
    found = Submission("run", 1, job("run", 1, 0, status, driver_exit))
    assert (found.state, found.exit_code) == (state, exit_code)


def test_the_reason_is_told_where_the_log_has_none() -> None:
    assert Submission("run", 1, job("run", 1, 0, "FAILED", 1)).explanation is None
    assert Submission("run", 1, job("run", 1, 0, "FAILED", None)).explanation == "Ray's own words"
    assert Submission("run", 1, job("run", 1, 0, "STOPPED", None)).explanation is None


def test_the_newest_of_a_run() -> None:
    others = RayJob(submission_id="raysubmit_1", status="RUNNING", metadata={"job_name": "x"})
    found = submissions_of([job("b", 1, 30), job("a", 2, 20), others, job("a", 1, 10)])
    assert [one.submission_id for one in found] == ["a.1", "a.2", "b.1"]
    assert [one.submission_id for one in newest_of_each(found)] == ["a.2", "b.1"]
    assert newest_of(found, "a", "http://head").submission_id == "a.2"

"""`llmforge stop`: a run saves after the step under way and ends, or with `--now` ends at once.

Ray sends SIGTERM to the driver, which asks the workers to save and leave, and waits for that as long as was agreed at
submission. With `--json` one object on stdout: {"run", "submission_id", "state"}.
"""

from __future__ import annotations

import json
import os
import time

from llmforge.cli.watch import renewed, watch
from llmforge.jobs.address import find_address
from llmforge.jobs.orders import kill_of
from llmforge.jobs.ray_api import RayApi
from llmforge.jobs.submissions import Submission, newest_of, submissions_of

KILL_SECONDS = 60.0
POLL_SECONDS = 0.5
STILL_RUNNING_EXIT = 3


def run_stop(run: str, address: str | None, *, now: bool, wait: bool, as_json: bool) -> int:
    """End a run; returns the exit code: 0 when it has ended, 3 when it has not yet. Raises `LlmforgeError`."""
    api = RayApi(find_address(address, os.environ))
    submission = newest_of(submissions_of(api.jobs()), run, api.address.url)
    if submission.is_active:
        num_seen = api.log(submission.submission_id).rfind("\n") + 1
        api.stop(submission.submission_id)
        if now:
            _kill(api, submission)
        if wait:
            watch(api, submission, num_seen=num_seen, left=f"{run} has been asked to stop; it saves and ends by itself")
        submission = renewed(api, submission)
    if as_json:
        found = {"run": run, "submission_id": submission.submission_id, "state": submission.state}
        print(json.dumps(found))
    elif submission.is_active:
        print(f"{run}: asked to save and end; look with `llmforge status {run}`")
    else:
        print(f"{run}: {submission.state}")
    return STILL_RUNNING_EXIT if submission.is_active and wait else 0


def _kill(api: RayApi, submission: Submission) -> None:
    """End the driver by a command on its node; without a driver the stop is at once anyway."""
    number = 1 + sum((job.submission_id or "").startswith(f"{submission.submission_id}--kill-") for job in api.jobs())
    request = kill_of(renewed(api, submission), number)
    if request is None:
        return
    api.submit(request)
    deadline = time.monotonic() + KILL_SECONDS
    while renewed(api, submission).is_active and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)

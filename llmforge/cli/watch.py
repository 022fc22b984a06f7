"""The progress of a run on a cluster, shown as that of a local one.

In: a submission. Out: the display on stderr until the run has ended, and what has become of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.console import Console

from llmforge.jobs.follow import LogFollower
from llmforge.jobs.ray_api import RayApi
from llmforge.jobs.submissions import Submission
from llmforge.metrics.progress_lines import LinePlayer

INTERRUPTED_EXIT = 3
"""The run goes on."""
_RAYS_OWN = re.compile(r"\S+\s\S+\sINFO job_manager\.py:\d+ -- |Running entrypoint for job ")


def watch(api: RayApi, submission: Submission, *, num_seen: int = 0, left: str = "") -> int:
    """Show the log of a submission from `num_seen` characters on until it ends; returns the exit code of the command.

    `left` is said when a person leaves by Ctrl-C, which leaves the run alone.
    """
    player = LinePlayer(Console(stderr=True))
    player.wait("waiting for the cluster")
    follower = LogFollower(api, submission.submission_id, player.tell, num_seen=num_seen)
    try:
        for line in follower.lines():
            if not is_rays_own(line):
                player.play(line)
    except KeyboardInterrupt:
        player.tell(left or going_on(submission))
        return INTERRUPTED_EXIT
    finally:
        player.close()
    ended = renewed(api, submission)
    tell_end(ended, player.tell)
    return ended.exit_code


def is_rays_own(line: str) -> bool:
    """Whether a line of a log is one that Ray puts before those of the command."""
    return _RAYS_OWN.match(line) is not None


def renewed(api: RayApi, submission: Submission) -> Submission:
    """The submission as it is now."""
    return Submission(submission.run, submission.attempt, api.job(submission.submission_id))


def tell_end(submission: Submission, tell: Callable[[str], None]) -> None:
    """Say how a run has ended, where its own last words do not."""
    if submission.explanation:
        tell(submission.explanation)
    tell(f"{submission.run}: {submission.state}")


def going_on(submission: Submission) -> str:
    """For a person who stops looking."""
    run = submission.run
    return f"{run} goes on; look again with `llmforge logs -f {run}`, end it with `llmforge stop {run}`"

"""`llmforge jobs`, `status` and `logs`: the runs of a cluster as it tells of them.

With `--json`: `jobs` prints {"address", "runs": [...]}, `status` one of these objects with the progress beside it, and
`logs` the lines of the driver, each an object: those of `metrics/progress_lines.py`, others as {"text": ...}.

    {"run", "state": "pending" | "running" | "done" | "failed" | "stopped", "exit_code", "attempt", "submission_id",
     "started_at", "ended_at", "run_uri", "message"}
    of `status` also: {"phase", "step", "max_steps", "loss", "seconds_left"}, each null where it is not known
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Console

from llmforge.cli.watch import INTERRUPTED_EXIT, going_on, is_rays_own, renewed
from llmforge.jobs.address import find_address
from llmforge.jobs.follow import LogFollower
from llmforge.jobs.ray_api import RayApi
from llmforge.jobs.submissions import OUTPUT, Submission, newest_of, newest_of_each, submissions_of
from llmforge.metrics.meters import duration_text
from llmforge.metrics.progress_lines import LinePlayer, ProgressLine, read_line
from llmforge.metrics.summary import printable_text
from llmforge.storage.uri import join_uri

_NUM_LAST_LINES = 5


def run_jobs(address: str | None, *, as_json: bool) -> None:
    """Print the newest submission of every run. Raises `ClusterError`."""
    api = RayApi(find_address(address, os.environ))
    newest = newest_of_each(submissions_of(api.jobs()))
    if as_json:
        print(json.dumps({"address": api.address.url, "runs": [_json_object(one) for one in newest]}))
    elif not newest:
        print(f"{api.address.url}: no runs yet; llmforge submit JOB.yaml starts one")
    else:
        print("\n".join(_table([("run", "state", "attempt", "submitted (UTC)", "took"), *map(_cells, newest)])))


def run_status(run: str, address: str | None, *, as_json: bool) -> int:
    """Print how a run is; returns the exit code that says so too. Raises `ClusterError`."""
    api = RayApi(find_address(address, os.environ))
    submission = newest_of(submissions_of(api.jobs()), run, api.address.url)
    lines = [line for line in api.log(submission.submission_id).splitlines() if not is_rays_own(line)]
    told = [(line, read_line(line)) for line in lines]
    states = [progress for _, progress in told if progress is not None and progress.text is None]
    progress = states[-1] if states else None
    if as_json:
        print(json.dumps(_json_object(submission) | _progress_object(progress)))
    else:
        texts = "\n".join(line if progress is None else progress.text or "" for line, progress in told)
        last_lines = [line for line in texts.splitlines() if line][-_NUM_LAST_LINES:]
        print(printable_text("\n".join(_describe(api, submission, progress, last_lines))))
    return submission.exit_code


def run_logs(run: str, address: str | None, *, follow: bool, as_json: bool) -> int:
    """Print the log of a run, with `follow` as it grows; returns the exit code. Raises `ClusterError`."""
    api = RayApi(find_address(address, os.environ))
    submission = newest_of(submissions_of(api.jobs()), run, api.address.url)
    player = LinePlayer(Console(highlight=False), plain=True)
    messages = LinePlayer(Console(stderr=True), plain=True)
    lines = (
        LogFollower(api, submission.submission_id, messages.tell).lines()
        if follow
        else api.log(submission.submission_id).splitlines()
    )
    try:
        for line in lines:
            if as_json:
                print(line if read_line(line) else json.dumps({"text": line}), flush=True)
            elif not is_rays_own(line):
                player.play(line)
    except KeyboardInterrupt:
        messages.tell(going_on(submission))
        return INTERRUPTED_EXIT
    return renewed(api, submission).exit_code if follow else 0


def _json_object(submission: Submission) -> dict[str, object]:
    started, ended = submission.started_at, submission.ended_at
    return {
        "run": submission.run,
        "state": submission.state,
        "exit_code": submission.exit_code,
        "attempt": submission.attempt,
        "submission_id": submission.submission_id,
        "started_at": None if started is None else started.isoformat(),
        "ended_at": None if ended is None else ended.isoformat(),
        "run_uri": _run_uri(submission),
        "message": submission.explanation,
    }


def _progress_object(progress: ProgressLine | None) -> dict[str, object]:
    phase = progress.phase if progress is not None else None
    training = progress.training if progress is not None else None
    return {
        "phase": None if phase is None else phase.name,
        "step": None if training is None else training.step,
        "max_steps": None if training is None else training.max_steps,
        "loss": None if training is None else training.loss,
        "seconds_left": None if training is None else training.seconds_left,
    }


def _run_uri(submission: Submission) -> str:
    return join_uri(submission.metadata(OUTPUT), submission.run)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(submission: Submission) -> tuple[str, ...]:
    started = submission.started_at
    submitted = "-" if started is None else f"{started:%Y-%m-%d %H:%M:%S}"
    return submission.run, submission.state, str(submission.attempt), submitted, _duration(submission)


def _duration(submission: Submission) -> str:
    if submission.started_at is None:
        return "-"
    until = submission.ended_at or datetime.now(timezone.utc)
    return duration_text(max(0.0, (until - submission.started_at).total_seconds()))


def _describe(
    api: RayApi, submission: Submission, progress: ProgressLine | None, last_lines: Sequence[str]
) -> list[str]:
    lines = [f"{submission.run}: {submission.state}, {_duration(submission)}, attempt {submission.attempt}"]
    if progress is not None and progress.phase is not None and submission.is_active:
        lines.append(f"  phase      {progress.phase.name}")
    if progress is not None and progress.training is not None:
        training = progress.training
        texts = [f"step {training.step} of {training.max_steps}", *training.numbers()]
        texts += [training.time_left()] if submission.is_active else []
        lines.append(f"  training   {', '.join(filter(None, texts))}")
    lines += [f"  folder     {_run_uri(submission)}", f"  dashboard  {api.address.url}/#/jobs"]
    if submission.explanation:
        lines.append(f"  reason     {submission.explanation}")
    return [*lines, "  last lines", *(f"    {line}" for line in last_lines)] if last_lines else lines

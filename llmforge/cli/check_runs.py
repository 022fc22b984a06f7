"""What can be seen from here of the runs that a job starts from (`run:NAME`).

In: a job that is right in itself. Out: the job as far as it could be resolved, what contradicts, and what cannot be
known yet: a run that is not there or not at its end may be so when the job starts, and a laptop may not see the
storage of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from llmforge.config.model import WEIGHTS_KEYS
from llmforge.errors import CheckpointError, ConfigError, StorageError


@dataclass(frozen=True)
class SeenRuns:
    """What was found."""

    job: JobConfig
    """With prompt format and checkpoints of the runs, as far as they are there."""
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def starts(self) -> list[str]:
        """The addresses that the training starts from, where they are known."""
        addresses = [getattr(self.job, key) for key in WEIGHTS_KEYS]
        return [] if self.job.earlier_runs else [address for address in addresses if isinstance(address, str)]


def look_at_runs(job: JobConfig) -> SeenRuns:
    """Look for the runs of a job; nothing is read for a job without any."""
    if not job.earlier_runs:
        return SeenRuns(job)
    from llmforge.checkpoint.earlier_runs import find_earlier_runs, with_checkpoints_of, with_format_of

    seen = job
    try:
        runs = find_earlier_runs(job)
        seen = with_format_of(job, runs)
        return SeenRuns(with_checkpoints_of(seen, runs))
    except ConfigError as error:
        key = next((key for key in job.earlier_runs if str(error).startswith(f"{key}: ")), next(iter(job.earlier_runs)))
        return SeenRuns(seen, findings=(Finding((key,), str(error).removeprefix(f"{key}: ")),))
    except (CheckpointError, StorageError) as error:
        return SeenRuns(seen, warnings=(f"seen from here, it cannot start yet: {error}",))

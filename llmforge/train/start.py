"""What a training starts from, where its job names earlier runs or their checkpoints, and with it its lineage.

In: a job as submitted that has its run name. Out: the same job with addresses of checkpoints in place of runs, and the
lineage that its checkpoints are to tell. A run that goes on keeps what it started from, whatever became of that.
"""

from llmforge.checkpoint.earlier_runs import (
    find_earlier_runs,
    with_checkpoints_of,
    with_format_of,
    with_generation_of,
)
from llmforge.checkpoint.find import CheckpointAddress
from llmforge.checkpoint.lineage import Lineage, lineage_from, lineage_of
from llmforge.checkpoint.names import RESOLVED_JOB_FILE
from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml
from llmforge.config.model import WEIGHTS_KEYS
from llmforge.errors import ConfigError
from llmforge.storage.base import NotFoundError, Storage, join_uri, open_storage, read_bytes


def with_start(job: JobConfig, *, resume: bool) -> tuple[JobConfig, Lineage]:
    """The job by what is trained, and its ancestors. Raises `CheckpointError` and `ConfigError`."""
    storage = open_storage(join_uri(job.output_dir, str(job.run_name)))
    before = _read_resolved(storage) if resume and job.earlier_runs else None
    if before is None:
        runs = find_earlier_runs(job)
        job = with_checkpoints_of(with_format_of(job, runs), runs)
    else:
        job = _as_before(job, before)
    saved = CheckpointStore(storage).list()[-1:] if resume else []
    if saved:
        return job, lineage_of(saved[0])
    addresses = (getattr(job, key) for key in WEIGHTS_KEYS)
    return job, lineage_from(address for address in addresses if isinstance(address, str))


def _read_resolved(storage: Storage) -> JobConfig | None:
    """The job of a run as it was resolved; None where the run has not come so far."""
    try:
        text = read_bytes(storage, RESOLVED_JOB_FILE).decode()
    except NotFoundError:
        return None
    return job_from_yaml(text, join_uri(storage.root_uri, RESOLVED_JOB_FILE))


def _as_before(job: JobConfig, before: JobConfig) -> JobConfig:
    """With the checkpoints that the run has started from. Raises `ConfigError` where the job names other ones."""
    for key, reference in job.earlier_runs.items():
        address = CheckpointAddress.of(str(getattr(before, key)))
        is_same_run = address.run_uri == open_storage(join_uri(job.output_dir, reference.run)).root_uri
        if not is_same_run or (reference.is_fixed and reference.checkpoint != address.name):
            raise ConfigError(
                f"{key}: found {reference}, but {job.run_name} has started from {getattr(before, key)}; a run that "
                "goes on (--resume) keeps its start. Name that one, or choose another run_name for a new run"
            )
    kept: dict[str, object] = {key: getattr(before, key) for key in WEIGHTS_KEYS}
    return with_generation_of(job.model_copy(update=kept), before)

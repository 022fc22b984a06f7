"""The reference model's log-probabilities, computed before the training by workers of their own, with Ray Data.

In: a resolved job and its prepared dataset of pairs. Out: the same dataset with one number for each answer beside it,
below `output_dir`; where they are there already nothing is computed. The model is the one that the training starts
from, computed as the training computes it, but with the weights frozen and without an engine.
"""

import logging
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from llmforge.checkpoint.find import CheckpointAddress
from llmforge.config.demand import count_places
from llmforge.config.job import JobConfig
from llmforge.config.model import WEIGHTS_KEYS, HubModel
from llmforge.config.training import LogprobScaling
from llmforge.dataset.prepared import PreparedDataset
from llmforge.dataset.reference import SCHEMA, commit_reference, has_reference, reference_name
from llmforge.dataset.shards import Split
from llmforge.errors import ClusterError, LlmforgeError
from llmforge.models.identity import weights_identity
from llmforge.storage.base import Storage
from llmforge.train.cluster import cluster_facts
from llmforge.train.task import ReferenceTask

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the sequences done so far, and how many there are in all."""
_FAILURE = pa.field("failure", pa.binary())
"""The `LlmforgeError` that ended a worker's task, pickled, in a row of its own; Ray would wrap and lose it."""
_INDEX = pa.field("index", pa.int64())


def wants_reference(job: JobConfig) -> bool:
    """Whether a resolved job asks for log-probabilities before its training."""
    config = job.preference_tuning_config
    return config is not None and config.needs_reference and config.reference == "precomputed"


def with_reference(
    job: JobConfig, prepared: PreparedDataset, storage: Storage, cache_folder: Path, progress: Progress
) -> PreparedDataset:
    """The prepared dataset with its reference, computed unless it is there. `storage` is rooted at `output_dir`.

    Raises `LlmforgeError` for what stops a worker.
    """
    name = reference_name(prepared, _decides(job, cache_folder))
    if has_reference(storage, name):
        logger.info("reference model: log-probabilities unchanged, using %s", name)
        return replace(prepared, reference=name)
    num_train, valid = prepared.stats.train.samples, prepared.stats.valid
    splits: tuple[Split, ...] = ("train",) if valid is None else ("train", "valid")
    values = [np.zeros(0, np.float32)] * (num_train + (0 if valid is None else valid.samples))
    task = ReferenceTask(job.model_dump_json(), prepared, splits, storage.root_uri, str(cache_folder))
    for done, (index, answers) in enumerate(_scored(task, len(values), job), start=1):
        values[index] = answers
        progress(done, len(values))
    parts = (values[:num_train], values[num_train:])
    commit_reference(storage, name, dict(zip(splits, parts, strict=False)))
    return replace(prepared, reference=name)


def _decides(job: JobConfig, cache_folder: Path) -> dict[str, object]:
    """All that tells the numbers from others."""
    models = (job.model_id, *(getattr(job, key) for key in WEIGHTS_KEYS))
    quantization = job.quantization
    return {
        "weights": [None if model is None else _identity(model, cache_folder) for model in models],
        "precision": job.precision,
        "quantization": None if quantization is None else quantization.model_dump(mode="json"),
    }


def _identity(model: str | HubModel, cache_folder: Path) -> list[str]:
    """A checkpoint is told by its address, since its name is never used twice: so it may be gone when a run goes on."""
    if isinstance(model, str) and CheckpointAddress.of(model).name is not None:
        return [model]
    return weights_identity(model, cache_folder)


def _scored(task: ReferenceTask, count: int, job: JobConfig) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(index of a sample, numbers of its answers), in any order."""
    config = job.preference_tuning_config
    assert config is not None
    scaling = config.logprob_processor_scaling_config or LogprobScaling()
    dataset = ray.data.range(count, override_num_blocks=math.ceil(count / scaling.batch_size))
    dataset.context.enable_progress_bars = False
    scored = dataset.map_batches(
        _ReferenceWorker,
        fn_constructor_args=(task,),
        batch_size=scaling.batch_size,
        compute=ray.data.ActorPoolStrategy(size=min(scaling.concurrency, math.ceil(count / scaling.batch_size))),
        **_arguments(_resources(scaling, job)),
    )
    for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
        for failure in table[_FAILURE.name].drop_null():
            raise pickle.loads(failure.as_py())
        answers = table["reference"].combine_chunks()
        for row, index in enumerate(table[_INDEX.name].to_pylist()):
            yield index, answers[row].values.to_numpy()


def _resources(scaling: LogprobScaling, job: JobConfig) -> dict[str, float]:
    """What each worker asks Ray for. Raises `ClusterError` where no node has it, for which Ray would wait for ever."""
    device = {"GPU": 1.0} if job.accelerator == "gpu" else {"CPU": 1.0}
    resources = {**device, **(scaling.custom_resources or {})}
    cluster = cluster_facts()
    if not cluster.can_grow and not any(count_places(resources, node) >= 1 for node in cluster.nodes):
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
        raise ClusterError(
            "preference_tuning_config.logprob_processor_scaling_config: a worker with the reference model asks for "
            f"{wanted} on one node, which no node of the cluster has; change custom_resources, or add such a node"
        )
    return resources


def _arguments(resources: dict[str, float]) -> dict[str, Any]:
    """The same by the names of Ray Data's arguments."""
    known = {"CPU": "num_cpus", "GPU": "num_gpus"}
    others = {name: amount for name, amount in resources.items() if name not in known}
    return {known[name]: amount for name, amount in resources.items() if name in known} | {"resources": others}


class _ReferenceWorker:
    """One worker; what loads a model is imported where it runs, as `train/entry.py` does it."""

    def __init__(self, task: ReferenceTask) -> None:
        self._task = task
        self._model: Any = None

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> pa.Table:
        """The numbers of some samples."""
        indexes = batch["id"].tolist()
        try:
            if self._model is None:
                self._model = import_module("llmforge.train.reference_worker").ReferenceModel(self._task)
            answers = self._model.score(indexes)
        except LlmforgeError as error:  # such as weights that this node cannot read
            return _table([None], [None], [pickle.dumps(error)])
        return _table(indexes, answers, [None] * len(indexes))


def _table(indexes: list[int] | list[None], answers: Any, failures: list[bytes] | list[None]) -> pa.Table:
    schema = pa.schema([_INDEX, SCHEMA.field("reference"), _FAILURE])
    return pa.table([pa.array(indexes, _INDEX.type), list(answers), pa.array(failures, _FAILURE.type)], schema=schema)

"""Rows of a prompt file answered by many workers of a Ray cluster, each with the model loaded once.

In: rows that were checked, and the address of a model that every node can reach. Out: answered windows in the order of
the input; they come to the driver, which alone writes, so the nodes share nothing but the model. It starts no Ray.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy, DataContext

from llmforge.answers.prompt_rows import PromptRow
from llmforge.inference.answer_rows import WINDOW_ROWS, AnsweredWindow, Asked, Window, WindowAnswerer, split_windows
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import open_generator
from llmforge.inference.ray_workers import device_per_worker, use_assigned_cpus

_WINDOWS_PER_WORKER = 4
"""At least, where there are so many rows, so that no worker waits long for the last."""


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker does."""

    model_uri: str
    cache_folder: Path
    asked: Asked


def answer_on_ray(
    rows: Sequence[PromptRow], num_done: int, plan: WorkerPlan, num_workers: int
) -> Iterator[AnsweredWindow]:
    """Answered windows in the order of the input. Raises `ClusterError` where the cluster has no such room."""
    device = device_per_worker(num_workers, "--num-workers")
    window_rows = min(WINDOW_ROWS, math.ceil((len(rows) - num_done) / (num_workers * _WINDOWS_PER_WORKER)))
    items = [{"window": window} for window in split_windows(rows, num_done, window_rows)]
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _RayWorker,
        fn_constructor_args=(plan,),
        compute=ActorPoolStrategy(size=min(num_workers, len(items))),
        **device,
    )
    for row in answered.iter_rows():
        yield row["answered"]


class _RayWorker:
    """An actor of Ray Data."""

    def __init__(self, plan: WorkerPlan) -> None:
        use_assigned_cpus()
        generator = open_generator(find_trained_model(plan.model_uri, "best", plan.cache_folder))
        self._answer = WindowAnswerer(generator, plan.asked)

    def __call__(self, row: dict[str, Window]) -> dict[str, AnsweredWindow]:
        return {"answered": self._answer(row["window"])}

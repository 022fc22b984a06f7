"""Batches that are ready when they are asked for: the next step's are made while the present one is computed."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from llmforge.train.batches import StepBatches, TrainingBatches


class Prefetcher:
    """Gives the batches of one step after another, and has one step ready ahead; a context manager."""

    def __init__(self, batches: TrainingBatches, *, pin_memory: bool) -> None:
        """`pin_memory`: put them where a GPU can copy them by itself."""
        self._batches = batches
        self._pin_memory = pin_memory
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llmforge-batches")
        self._ahead: tuple[int, Future[StepBatches]] | None = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def step(self, index: int) -> StepBatches:
        """The batches of step `index`, counted from 0 over the whole run; any step, but only the next is ready."""
        ready = self._ahead
        future = ready[1] if ready is not None and ready[0] == index else self._executor.submit(self._make, index)
        batches = future.result()
        self._ahead = (index + 1, self._executor.submit(self._make, index + 1))
        return batches

    def _make(self, index: int) -> StepBatches:
        batches = self._batches.step(index)
        if not self._pin_memory:
            return batches
        return replace(batches, micro_batches=[batch.pinned() for batch in batches.micro_batches])

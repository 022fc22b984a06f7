"""Many answers at once from a model of `transformers`: continuous batching.

Requests join between two decoding steps, as soon as there is a place; nothing overtakes. Every step of the loop reads
at most `prefill_tokens` of prompts, so that a long prompt holds nobody up, and then takes one token for every running
answer. What a classifier is asked needs no such token: short prompts that follow one another are read in one pass.

`transformers` has continuous batching of its own (`model.generate_batch`), which cannot serve this: its sampling has
one seed for the whole process and either samples or not, it gives the log probability of the token taken and of no
other, after temperature and the like, and it lays all rows out as one, for which PEFT cannot choose adapters.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from llmforge.answers.draw import generate_arguments
from llmforge.inference.server.batch import Batch, Prefill
from llmforge.inference.server.engine import EngineFullError, EngineLimits
from llmforge.inference.server.generation import Generation, choose


class TransformersEngine:
    """Runs a model in a thread of its own, from `start` to `stop`."""

    def __init__(self, model: PreTrainedModel, limits: EngineLimits, *, has_adapters: bool = False) -> None:
        self._limits = limits
        self._device = model.device
        self._batch = Batch(model, has_adapters=has_adapters)
        shares = self._batch.can_share()
        self._max_rows = limits.max_concurrency if shares else 1
        self._prefill_tokens = limits.prefill_tokens if shares else limits.max_cached_tokens
        self._waiting: deque[Generation] = deque()
        self._reading: Prefill | None = None
        self._labelling: list[Generation] = []
        """Those that are read in one pass."""
        self._changed = threading.Condition()
        self._is_stopping = False
        self._executor = ThreadPoolExecutor(1, "llmforge-engine")

    def start(self) -> "Future[None]":
        """Begin; the future ends with the engine, and holds the exception where a step has failed."""
        ended = self._executor.submit(self._run)
        ended.add_done_callback(lambda _: self._abandon())
        return ended

    def stop(self) -> None:
        """End after the step that is being taken; unfinished answers get None."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._executor.shutdown()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Take answers that belong together into the queue. Raises `EngineFullError` where not all of them may wait."""
        with self._changed:
            if self.num_unfinished + len(generations) > self._limits.max_unfinished:
                raise EngineFullError
            if self._is_stopping:
                for generation in generations:
                    generation.deliver(None)
                return
            self._waiting.extend(generations)
            self._changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Drop an answer that nobody waits for, before the next step."""
        generation.is_cancelled = True

    @property
    def num_running(self) -> int:
        """Answers that have a place, of which one may still have its prompt read."""
        return len(self._batch.generations) + (self._reading is not None) + len(self._labelling)

    @property
    def num_waiting(self) -> int:
        """Answers without a place."""
        return len(self._waiting)

    @property
    def num_unfinished(self) -> int:
        """Running and waiting."""
        return self.num_running + self.num_waiting

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping or self.num_unfinished)
                if self._is_stopping:
                    return
            self._drop_cancelled()
            self._read_prompts(self._prefill_tokens - self._label())
            self._decode()

    def _abandon(self) -> None:
        with self._changed:
            self._is_stopping = True
            reading = [self._reading.generation] if self._reading else []
            for generation in (*self._batch.generations, *reading, *self._labelling, *self._waiting):
                generation.deliver(None)
            self._waiting.clear()

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(generation for generation in self._waiting if not generation.is_cancelled)
        if self._reading is not None and self._reading.generation.is_cancelled:
            self._reading = None
        self._batch.keep([row for row, one in enumerate(self._batch.generations) if not one.is_cancelled])

    def _label(self) -> int:
        """Answer what the queue begins with, as far as it fits into one pass of a classifier; the tokens of that."""
        if self._reading is not None:
            return 0
        with self._changed:
            while self._waiting and self._fits_labelling(self._waiting[0]):
                self._labelling.append(self._waiting.popleft())
        if not self._labelling:
            return 0
        for generation, logits in zip(self._labelling, self._batch.read_whole(self._labelling), strict=True):
            generation.end_with_label(logits)
        num_tokens = len(self._labelling) * max(len(generation.prompt) for generation in self._labelling)
        self._labelling = []
        return num_tokens

    def _fits_labelling(self, generation: Generation) -> bool:
        together = [*self._labelling, generation]
        width = max(len(one.prompt) for one in together)
        fits = len(together) <= self._max_rows and len(together) * width <= self._prefill_tokens
        return fits and generation.labelling is not None

    def _read_prompts(self, num_left: int) -> None:
        """Read so many tokens of prompts in their order; whose prompt is read joins, or has its label."""
        joining: list[Prefill] = []
        while num_left > 0:
            if self._reading is None:
                self._admit(joining)
            if self._reading is None:
                break
            num_tokens = min(num_left, self._reading.num_left)
            num_left -= num_tokens
            logits = self._batch.read(self._reading, num_tokens)
            if self._reading.num_left == 0:
                if not self._begin(self._reading.generation, logits):
                    joining.append(self._reading)
                self._reading = None
        self._batch.join(joining)

    def _admit(self, joining: Sequence[Prefill]) -> None:
        """Give the first of the queue a place, if there is one; it needs none where the next pass labels it."""
        running = [*self._batch.generations, *(prefill.generation for prefill in joining)]
        with self._changed:
            if not self._waiting or len(running) >= self._max_rows or self._fits_labelling(self._waiting[0]):
                return
            longest = max(generation.most_tokens for generation in (*running, self._waiting[0]))
            if running and longest * (len(running) + 1) > self._limits.max_cached_tokens:
                return
            self._waiting[0].processors = self._processors(self._waiting[0])
            self._reading = self._batch.begin(self._waiting.popleft())

    def _processors(self, generation: Generation) -> LogitsProcessorList | None:
        found = generate_arguments(generation.sampling, self._device).get("logits_processor")
        return found if isinstance(found, LogitsProcessorList) else None

    def _decode(self) -> None:
        if not self._batch.generations:
            return
        ended = self._take(self._batch.generations, self._batch.decode())
        self._batch.keep([row for row, has_ended in enumerate(ended) if not has_ended])

    def _begin(self, generation: Generation, logits: torch.Tensor) -> bool:
        """Give a generation whose prompt is read its label, or its first token; whether that has ended it."""
        if generation.labelling is None:
            return self._take([generation], logits)[0]
        generation.end_with_label(logits[0])
        return True

    def _take(self, generations: list[Generation], logits: torch.Tensor) -> list[bool]:
        """Give every generation its next token; which of them have ended."""
        chosen = choose(generations, logits)
        return [generation.take(*token) for generation, token in zip(generations, chosen, strict=True)]

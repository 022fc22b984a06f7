"""Answers from a trained model, by the prompt format and the stops that it was trained with.

In: a `TrainedModel` and messages. Out: the answer's text, whole or as a stream, or the answers to many conversations. A
classifier answers with a label.
"""

import queue
import threading
from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llmforge.answers.asked import check_asked
from llmforge.answers.batch import Answer, BatchLimits, Prompt, answer_prompts
from llmforge.answers.classify import classify_prompts
from llmforge.answers.draw import generate_arguments
from llmforge.answers.sampling import NOTHING_ASKED, Sampling
from llmforge.answers.stops import Stops
from llmforge.config.classifier import Classification
from llmforge.errors import ConfigError
from llmforge.inference.find import TrainedSource
from llmforge.inference.load import TrainedModel, load_trained_model, quiet_transformers
from llmforge.prompt.messages import Conversation


class Generator:
    """Answers one conversation as a stream, or many together."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        self.format = trained.answer_format

    def parse(self, raw_messages: object) -> Conversation:
        """Check messages that end with the user's. Raises `DataError`."""
        return self.format.parse(raw_messages)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids that the model is given."""
        return self.format.prompt_ids(conversation)

    def answer(self, conversation: Conversation, sampling: Sampling) -> str:
        """The whole answer."""
        return "".join(self.stream(conversation, sampling))

    def stream(self, conversation: Conversation, sampling: Sampling) -> PyGenerator[str, None, None]:
        """The answer in pieces of text as they come. Leaving the iteration stops the model.

        Raises `DataError` where the prompt leaves no room for an answer, and what `check_asked` raises.
        """
        check_asked(self.trained.classifier, sampling, None)
        if self.trained.classifier is not None:
            yield self.classify(conversation).label
            return
        prompt, stops = self.prompt_ids(conversation), self.format.stops(sampling)
        sampling = sampling.over(self.format.generation)
        with self._generating(prompt, self.format.room(len(prompt), sampling), sampling, stops) as tokens:
            yield from self.format.text(tokens, stops)

    def prompt(self, conversation: Conversation, sampling: Sampling, index: int = 0) -> Prompt:
        """What the model is given for one of many conversations. Raises `DataError` where it leaves no room."""
        ids = self.prompt_ids(conversation)
        return Prompt(ids, self.format.room(len(ids), sampling), index)

    def answer_all(
        self, prompts: Sequence[Prompt], sampling: Sampling, limits: BatchLimits, threshold: float | None = None
    ) -> Iterator[list[Answer]]:
        """Answers batch after batch, in the order in which they are done; `threshold` is for a classifier.

        Raises what `check_asked` raises.
        """
        model, classifier = self.trained.model, self.trained.classifier
        check_asked(classifier, sampling, threshold)
        if classifier is None:
            return answer_prompts(model, self.format, prompts, sampling, limits)
        batches = classify_prompts(model, classifier, prompts, threshold, limits)
        return ([found.answer for found in batch] for batch in batches)

    def classify(self, conversation: Conversation, threshold: float | None = None) -> Classification:
        """What a classifier says of one conversation. Errors as in `classify_all` and in `prompt`."""
        return self.classify_all([self.prompt(conversation, NOTHING_ASKED)], BatchLimits(), threshold)[0]

    def classify_all(
        self, prompts: Sequence[Prompt], limits: BatchLimits, threshold: float | None = None
    ) -> list[Classification]:
        """What a classifier says of many conversations, in the order of their places in the input.

        Raises `ConfigError` for a model that is none, and what `check_asked` raises.
        """
        classifier = self.trained.classifier
        if classifier is None:
            raise ConfigError(
                f"found a model of task: {self.trained.job.task}, which has no labels, allowed is a classifier: load a "
                "run of task: classification, or let this one generate"
            )
        check_asked(classifier, NOTHING_ASKED, threshold)
        batches = classify_prompts(self.trained.model, classifier, prompts, threshold, limits)
        found = sorted((one for batch in batches for one in batch), key=lambda one: one.index)
        return [one.classification for one in found]

    @contextmanager
    def _generating(
        self, prompt: list[int], max_tokens: int, sampling: Sampling, stops: Stops
    ) -> Iterator[Iterator[int]]:
        """Generated tokens while a thread runs the model; the end of the block ends the thread."""
        model = self.trained.model
        input_ids = torch.tensor([prompt], device=model.device)
        tokens = _Tokens()
        left = threading.Event()
        arguments = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "streamer": tokens,
            "max_new_tokens": max_tokens,
            "stopping_criteria": StoppingCriteriaList([_WhenSet(left)]),
            "eos_token_id": sorted(stops.token_ids) or None,
            "pad_token_id": 0,
            **generate_arguments(sampling, model.device),
        }
        with ThreadPoolExecutor(1, "llmforge-generate") as executor:
            generation = executor.submit(model.generate, **arguments)
            generation.add_done_callback(lambda _: tokens.end())  # an exception must not leave the reader waiting
            try:
                yield iter(tokens)
            finally:
                left.set()
                generation.result()


class _Tokens(BaseStreamer):  # type: ignore[misc] # transformers is untyped here
    """Tokens handed from the thread that generates to the one that reads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._prompt_has_come = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with every token."""
        if self._prompt_has_come:
            self._queue.put(value.flatten().tolist())
        self._prompt_has_come = True

    def end(self) -> None:
        """Called when nothing follows."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        """All generated tokens, without the prompt."""
        for tokens in iter(self._queue.get, None):
            yield from tokens


class _WhenSet(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Ends a generation whose reader has left."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._left.is_set(), dtype=torch.bool, device=input_ids.device)


def open_generator(source: TrainedSource) -> Generator:
    """Load a trained model for answering. Errors as in `load_trained_model`."""
    quiet_transformers()
    return Generator(load_trained_model(source))

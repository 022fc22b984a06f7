"""What `llmforge.load` gives to Python programs: a trained model that answers messages.

In: messages as plain dicts of role and content. Out: text, or what a classifier says. Everything else, prompt format,
stops, sampling, labels and threshold, is what the run has stored, as far as nothing else is asked for.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict, Unpack

from llmforge.answers.batch import BatchLimits, Prompt
from llmforge.answers.sampling import NOTHING_ASKED, Sampling
from llmforge.config.classifier import Classification, Classifier
from llmforge.config.job import JobConfig
from llmforge.errors import ConfigError, DataError
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from llmforge.prompt.messages import Conversation

Messages = Sequence[Mapping[str, object]]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, as keyword arguments."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str]


class ChatModel:
    """A trained model and its prompt format."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    @property
    def job(self) -> JobConfig:
        """The resolved job that trained it."""
        return self._generator.trained.job

    @property
    def classifier(self) -> Classifier | None:
        """Labels and threshold; None for a model that writes text."""
        return self._generator.trained.classifier

    def render(self, messages: Messages) -> str:
        """The text that the model is given. Raises `DataError`."""
        return self._generator.format.render(self._parse(messages))

    def generate(self, messages: Messages, **sampling: Unpack[SamplingOptions]) -> str:
        """The answer, of a classifier the label.

        Raises `DataError` for messages that are none, `ConfigError` for sampling that is none.
        """
        return "".join(self.stream(messages, **sampling))

    def stream(self, messages: Messages, **sampling: Unpack[SamplingOptions]) -> Iterator[str]:
        """The answer in pieces of text as they come; closing the iterator stops the model. Errors as in `generate`."""
        return self._generator.stream(self._parse(messages), _sampling(sampling))

    def generate_batch(
        self,
        many_messages: Sequence[Messages],
        batch_size: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[str]:
        """The answers in the order of the conversations, made many at a time.

        `batch_size`: most conversations at a time; without it as many as the device's memory holds. With a `seed` the
        first answer is that of `generate`, and none depends on how many others there are. Errors as in `generate`, all
        conversations with one named at once, by their places from 1.
        """
        limits = _limits(batch_size)
        chosen = _sampling(sampling)
        answers = self._generator.answer_all(self._prompts(many_messages, chosen), chosen, limits)
        texts = {answer.index: answer.text for batch in answers for answer in batch}
        return [texts[index] for index in range(len(many_messages))]

    def classify(self, messages: Messages, threshold: float | None = None) -> Classification:
        """The label that a classifier decides for, and the probabilities of all.

        `threshold`: of two labels, decide for the positive one from this probability on; None: from that of the run.
        Raises `DataError` for messages that are none, `ConfigError` for a model or a threshold that is none.
        """
        return self._generator.classify(self._parse(messages), threshold)

    def classify_batch(
        self, many_messages: Sequence[Messages], threshold: float | None = None, batch_size: int | None = None
    ) -> list[Classification]:
        """As `classify`, many at a time, in the order of the conversations.

        `batch_size` and errors as in `generate_batch`.
        """
        return self._generator.classify_all(self._prompts(many_messages, NOTHING_ASKED), _limits(batch_size), threshold)

    def _parse(self, messages: Messages) -> Conversation:
        return self._generator.parse(messages)

    def _prompts(self, many_messages: Sequence[Messages], sampling: Sampling) -> list[Prompt]:
        prompts: list[Prompt] = []
        problems: list[str] = []
        for index, messages in enumerate(many_messages):
            try:
                prompts.append(self._generator.prompt(self._parse(messages), sampling, index))
            except DataError as error:
                problems.append(f"conversation {index + 1}: {error}")
        if problems:
            raise DataError("\n".join(problems))
        return prompts


def open_chat_model(uri: str | os.PathLike[str], checkpoint: str, cache_folder: Path) -> ChatModel:
    """Load a trained model. Errors as in `find_trained_model` and `load_trained_model`."""
    return ChatModel(open_generator(find_trained_model(os.fspath(uri), checkpoint, cache_folder)))


def _limits(batch_size: int | None) -> BatchLimits:
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size: found {batch_size}, allowed is a number from 1, or None")
    return BatchLimits(num_rows=batch_size)


def _sampling(options: SamplingOptions) -> Sampling:
    known = list(SamplingOptions.__annotations__)
    unknown = sorted(set(options) - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
        raise ConfigError(f"sampling: found {', '.join(unknown)}, which is none of its settings ({advice})")
    stop = options.get("stop", ())
    return Sampling(
        max_tokens=options.get("max_tokens"),
        temperature=options.get("temperature"),
        top_p=options.get("top_p"),
        top_k=options.get("top_k"),
        min_p=options.get("min_p"),
        seed=options.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )

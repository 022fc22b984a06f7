"""The answers to each prompt over the steps of a run, as its report shows them.

In: samples in the order of their evaluations. Out: one `PromptHistory` per prompt, plain values, newest answer first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.metrics.samples import Sample

FOLDED_FROM_CHARACTERS = 600
"""Longer texts are folded on the page."""


@dataclass(frozen=True)
class ShownAnswer:
    """An answer that stood for one evaluation or for several in a row."""

    first_step: int
    last_step: int
    text: str
    is_complete: bool
    """Ended by the model, and not for lack of room."""

    @property
    def is_long(self) -> bool:
        """Whether it is to be folded."""
        return len(self.text) > FOLDED_FROM_CHARACTERS


@dataclass(frozen=True)
class ShownMessage:
    """One message of a prompt."""

    role: str
    content: str

    @property
    def is_long(self) -> bool:
        """Whether it is to be folded."""
        return len(self.content) > FOLDED_FROM_CHARACTERS


@dataclass(frozen=True)
class PromptHistory:
    """A prompt and what was answered to it."""

    messages: Sequence[ShownMessage]
    newest: ShownAnswer
    earlier: Sequence[ShownAnswer]
    """From the newest to the oldest."""


def prompt_histories(samples: Sequence[Sample]) -> list[PromptHistory]:
    """By the prompts of the last evaluation, in their order, then those that were asked earlier only."""
    by_prompt: dict[str, list[Sample]] = {}
    newest_first = sorted(samples, key=lambda sample: (-sample.step, sample.prompt))
    for sample in newest_first:
        by_prompt.setdefault(sample.prompt_key, []).append(sample)
    return [_history(list(reversed(found))) for found in by_prompt.values()]


def _history(samples: Sequence[Sample]) -> PromptHistory:
    answers: list[ShownAnswer] = []
    for sample in samples:
        first_step = sample.step
        if answers and answers[-1].text == sample.answer:
            first_step = answers.pop().first_step
        answers.append(ShownAnswer(first_step, sample.step, sample.answer, sample.finish_reason == "stop"))
    newest, *earlier = reversed(answers)
    messages = [ShownMessage(str(message["role"]), str(message["content"])) for message in samples[0].messages]
    return PromptHistory(messages, newest, earlier)

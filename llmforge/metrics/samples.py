"""What a model answered to the prompts of its job at each evaluation: `samples.jsonl`, and how it is read back.

In: `Sample`s, step after step. Out: one JSON object per line, all of an evaluation before `log` returns. The driver of
a run writes the file in the run's folder, the worker of rank 0 another one for the checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from llmforge.metrics.json_lines import read_json_lines, rewrite
from llmforge.metrics.summary import printable_text

SAMPLES_FILE = "samples.jsonl"
"""In a run's folder, and in each of its checkpoints up to its step."""
_MOST_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Sample:
    """One answer at one evaluation."""

    step: int
    prompt: int
    """Place of the prompt among those of the job, from 0."""
    messages: list[dict[str, JsonValue]]
    """The prompt itself."""
    answer: str
    finish_reason: Literal["stop", "length"]
    """Whether the model ended the answer, or the most tokens that it may have."""

    @property
    def prompt_key(self) -> str:
        """What tells the prompt from others; its place may change when a run goes on."""
        return json.dumps(self.messages)


_ADAPTER = TypeAdapter(Sample)


class SampleLog:
    """Appends samples to a file, which is there from the first one on.

    `append` and `resume_from_step` mean what they mean for `JsonlLogger`.
    """

    def __init__(self, path: Path, *, append: bool = True, resume_from_step: int | None = None) -> None:
        self._path = path
        if not append:
            path.unlink(missing_ok=True)
        kept = [sample for sample in self.samples() if resume_from_step is None or sample.step <= resume_from_step]
        if path.exists():
            rewrite(path, map(_to_line, kept))

    def log(self, samples: Sequence[Sample]) -> None:
        """Add the answers of one evaluation."""
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(map(_to_line, samples))

    def samples(self) -> list[Sample]:
        """All that the file holds."""
        return read_samples(self._path) if self._path.exists() else []


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file in its order, without a torn last line. Raises StorageError and FileNotFoundError."""
    return read_json_lines(path, _parse, "a JSON object with step, prompt, messages, answer and finish_reason")


def samples_text(samples: Sequence[Sample], earlier: Sequence[Sample]) -> str:
    """The answers of one evaluation in one line; `earlier` are those before, of any step."""
    before = {sample.prompt_key: sample.answer for sample in earlier}
    known = [sample for sample in samples if sample.prompt_key in before]
    changed = sum(sample.answer != before[sample.prompt_key] for sample in known)
    first = " ".join(printable_text(samples[0].answer).split())
    shown = first if len(first) <= _MOST_SHOWN_CHARACTERS else first[: _MOST_SHOWN_CHARACTERS - 3] + "..."
    counts = f"{len(samples)} {'prompt' if len(samples) == 1 else 'prompts'} answered"
    since = f", {changed} otherwise than before" if known else ""
    return f'step {samples[0].step}: {counts}{since}; the first: "{shown}"'


def _to_line(sample: Sample) -> str:
    return json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n"


def _parse(line: bytes) -> Sample | None:
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None

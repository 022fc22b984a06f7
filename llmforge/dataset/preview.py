"""The first rows of a job as the model will see them, for people and for other programs.

In: a resolved job and the tokenizer's text. Out: rows with their text, ids, labels and prompt, made by the same code as
the training data. It needs neither Ray nor torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from llmforge.config.job import JobConfig
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.first_rows import FirstRow, first_rows
from llmforge.dataset.labels import find_label_tokens, with_labels_checked
from llmforge.dataset.pairs import pair_up
from llmforge.dataset.rated import rate
from llmforge.dataset.row_encoder import EncodedRows, job_encoder
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.prompt.document import Document, TrainingRow
from llmforge.prompt.messages import Conversation
from llmforge.prompt.render import Segment, render_prompt_segments


@dataclass(frozen=True)
class Piece:
    """A piece of rendered text."""

    text: str
    trained: bool
    is_control: bool
    """One control token, not characters that look like one."""


@dataclass(frozen=True)
class Turn:
    """One message in tokens, what the templates put around it included; or one text of a row that has no messages."""

    name: str
    """Its role, or such as `segment 2`."""
    num_tokens: int
    num_trained_tokens: int


@dataclass(frozen=True)
class Prompt:
    """What inference is given."""

    text: str
    input_ids: list[int]


@dataclass(frozen=True)
class EncodedRow:
    """A row that can be trained on."""

    pieces: tuple[Piece, ...]
    example: Example
    prompt: Prompt
    """What inference would be given before the last answer; in plain text, before all of it."""
    turns: tuple[Turn, ...]
    learnt: tuple[str, ...]
    """The labels, decoded: one text for each run of trained tokens."""
    is_windowed: bool
    """Plain text: where it is too long it is cut into windows."""

    @property
    def text(self) -> str:
        """The whole training text."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class PreviewRow:
    """One row of the data: encoded, or refused with the reason."""

    number: int
    """Counted from 1 over all files."""
    place: str
    """`file:line`."""
    encoded: EncodedRow | None
    """Of a pair, the conversation with the chosen answer."""
    problem: str | None
    rejected: EncodedRow | None = None
    """Of a pair, the other conversation."""
    is_desirable: bool | None = None
    """Of a single answer that is rated, what its label says."""

    @property
    def conversations(self) -> list[tuple[str, EncodedRow]]:
        """(place, what is there): one, or of a pair both; none where the row is refused."""
        if self.encoded is None:
            return []
        if self.is_desirable is not None:
            return [(f"{self.place}, {'desirable' if self.is_desirable else 'undesirable'}", self.encoded)]
        if self.rejected is None:
            return [(self.place, self.encoded)]
        return [(f"{self.place}, chosen", self.encoded), (f"{self.place}, rejected", self.rejected)]


def preview_rows(job: JobConfig, tokenizer: TokenizerText, cache_folder: Path) -> Iterator[PreviewRow]:
    """The rows of the training data of a resolved job, in the order of the files."""
    previewer = _Previewer(job, tokenizer)
    return (previewer.row(row) for row in first_rows(job, job.prompt_format, cache_folder))


class _Previewer:
    """Encodes rows one by one."""

    def __init__(self, job: JobConfig, tokenizer: TokenizerText) -> None:
        self._format = job.prompt_format
        self._tokenizer = SegmentTokenizer(tokenizer.json)
        self._decoder = Tokenizer.from_str(tokenizer.json)
        self._encoder = job_encoder(job, tokenizer.eos_token, self._tokenizer)
        self._label_ids = find_label_tokens(job.labels, job.prompt_format, self._tokenizer)

    def row(self, row: FirstRow) -> PreviewRow:
        if row.parsed is None:
            return PreviewRow(row.number, row.place, None, row.problem)
        parsed = [row.parsed] if row.rejected is None else [row.parsed, row.rejected]
        rows = self._encoder.encode(parsed)
        problem = self._checked(rows, row).problems[0]
        if problem is not None:
            return PreviewRow(row.number, row.place, None, problem)
        first, *second = [self._encoded(rows, index, one) for index, one in enumerate(parsed)]
        return PreviewRow(row.number, row.place, first, None, next(iter(second), None), row.is_desirable)

    def _checked(self, rows: EncodedRows, row: FirstRow) -> EncodedRows:
        """As the data stage looks at them; both of a pair together."""
        if row.is_desirable is not None:
            return rate(rows, [row.is_desirable])
        return with_labels_checked(rows, self._label_ids) if row.rejected is None else pair_up(rows)

    def _encoded(self, rows: EncodedRows, index: int, row: TrainingRow) -> EncodedRow:
        segments, example = self._encoder.segments(row), rows.examples[index]
        return EncodedRow(
            tuple(self._pieces(segments)),
            example,
            self._prompt(row, segments),
            self._turns(row, segments, example),
            tuple(self._learnt(example)),
            bool(rows.is_windowed[index]),
        )

    def _pieces(self, segments: list[Segment]) -> Iterator[Piece]:
        for segment in segments:
            for index, part in enumerate(self._tokenizer.split(segment)):
                if part:
                    yield Piece(part, segment.trained, is_control=index % 2 == 1)

    def _prompt(self, row: TrainingRow, segments: list[Segment]) -> Prompt:
        if isinstance(row, Document):
            prompt = segments[: _last_answer(segments)]
        else:
            prompt = render_prompt_segments(Conversation(row.messages[:-1]), self._format)
        return Prompt("".join(segment.text for segment in prompt), self._tokenizer.encode_prompt(prompt))

    def _turns(self, row: TrainingRow, segments: list[Segment], example: Example) -> tuple[Turn, ...]:
        """Tokens of each message: the segments are encoded with the number of their message as the weight."""
        numbers = [0 if segment.message is None else segment.message + 1 for segment in segments]
        owned = [segment._replace(weight=number) for segment, number in zip(segments, numbers, strict=True)]
        owners = self._tokenizer.encode([owned]).weights
        owners[:1] = next((number for number, segment in zip(numbers, segments, strict=True) if segment.text), 0)
        is_trained = example.labels != IGNORED_LABEL
        return tuple(
            Turn(
                name,
                int(np.count_nonzero(owners == number)),
                int(np.count_nonzero(is_trained & (owners == number))),
            )
            for number, name in enumerate(_names(row), start=1)
        )

    def _learnt(self, example: Example) -> Iterator[str]:
        for is_trained, labels in groupby(example.labels.tolist(), key=lambda label: label != IGNORED_LABEL):
            if is_trained:
                yield self._decoder.decode(list(labels), skip_special_tokens=False)


def _names(row: TrainingRow) -> list[str]:
    """What the turns of a row are called."""
    if isinstance(row, Conversation):
        return [message.role for message in row.messages]
    if row.is_windowed:
        return ["text"]
    return [f"segment {number}" for number in range(1, len(row.segments) + 1)]


def _last_answer(segments: list[Segment]) -> int:
    """The index of the segment that begins the last trained stretch; how many there are where nothing is trained."""
    begins = [
        index
        for index, segment in enumerate(segments)
        if segment.trained and (index == 0 or not segments[index - 1].trained)
    ]
    return begins[-1] if begins else len(segments)

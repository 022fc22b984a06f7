"""Conversations and documents to checked examples: the one path from a row to what the model sees.

In: what many rows were read as. Out: `EncodedRows`, their tokens and what the checks found. The data stage and the
preview share it, so that what a person looks at is what is trained.

Rows of one shape (the same roles and weights in the same order) are rendered, cut and checked once, with their contents
left open, which makes a statement about each of them whatever their contents are:

- parity: before every answer, the prompt that inference would give is the begin of the example, item by item.
- one BOS: a conversation does not open with two of them, nor hold one that no template put there.
- the terminator of every trained answer carries loss.

Where contents may change how a row is cut (blank ones, or those that may hold control tokens) a row is a shape of its
own. Looked at in every row is whether a program that tokenizes the joined text would make one token of both sides of
a seam. Texts that rows hold themselves have no prompt to compare: of them, pre-rendered ones may not double BOS.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.assembly import Plan, PlannedRow
from llmforge.dataset.cut import CutRow, Special
from llmforge.dataset.example import ExampleBatch
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.prompt.document import Document, TrainingRow, plain_text, render_document
from llmforge.prompt.messages import Conversation
from llmforge.prompt.render import (
    Segment,
    Task,
    TrainOn,
    compile_templates,
    render,
    render_prompt_segments,
    trains_last_only,
)

logger = logging.getLogger(__name__)

MAX_PLANS = 4096
PROMPT_DIFFERS = "the prompt that inference would give before answer {number} is not the begin of the training text"
SYSTEM_MOVES = (
    ": with system_in_last_user the system message stands in another turn there; remove system_in_last_user, or train "
    "the last answers only (dataset.train_on: last_turn)"
)
TWO_BEGINNINGS = (
    "more than one token for the begin of the text (BOS): the content holds one as well; set prompt_format.bos to an "
    "empty text, or remove it from the content"
)
RENDERED_WITH_TWO_BEGINNINGS = (
    "two tokens for the begin of the text (BOS), one behind the other: remove one of them from the segments"
)
NO_TERMINATOR = "the terminator of a trained answer carries no loss, so the model would not learn to stop"


_Piece = tuple[str | None, float, bool]
"""Of a pre-rendered row: a text that decides its shape, None where any does; its weight; whether an answer starts."""


@dataclass(frozen=True)
class EncodedRows:
    """Examples and what is to be said about each."""

    examples: ExampleBatch
    problems: list[str | None]
    """Why a row must not be trained on."""
    num_prompts: NDArray[np.int64]
    """How many prompts were compared with the example; shape (rows,)."""
    straddled: NDArray[np.bool_]
    """A program that tokenizes the joined text would give other ids; shape (rows,)."""
    ends_with_terminator: NDArray[np.bool_]
    """The last trained token is a control token, so that the model can learn to stop; shape (rows,)."""
    is_windowed: NDArray[np.bool_]
    """Plain text: where it is longer than the context it is cut into windows; shape (rows,)."""
    first_lengths: NDArray[np.int64] | None = None
    """Of pairs: tokens of the chosen conversation, behind which the rejected one begins. Of rated rows: tokens before
    the answer. Shape (rows,)."""
    are_desirable: NDArray[np.bool_] | None = None
    """Of rated rows: what their labels say; shape (rows,)."""


@dataclass(frozen=True, eq=False)
class _Shape:
    """What all rows with the same roles and weights have in common."""

    plan: Plan
    problem: str | None
    num_prompts: int
    ends_with_terminator: bool


class RowEncoder:
    """Renders, tokenizes and checks the rows of one job.

    `eos_token`: the token that ends a text of this tokenizer, which is put behind plain text and trained.
    """

    def __init__(
        self,
        prompt_format: PromptFormat,
        tokenizer: SegmentTokenizer,
        task: Task,
        train_on: TrainOn,
        eos_token: str | None = None,
    ) -> None:
        self._format = prompt_format
        self._tokenizer = tokenizer
        self._task: Task = task
        self._last_only = trains_last_only(task, train_on)
        self._train_on: TrainOn = train_on
        self._shapes: dict[object, _Shape] = {}
        templates = compile_templates(prompt_format, tokenizer.special_tokens)
        ends = [id_ for token, id_ in tokenizer.special_ids.items() if templates.terminator.endswith(token)]
        self._terminator = ends[0] if ends and task != "classification" else None
        turns = (prompt_format.system, prompt_format.user, prompt_format.assistant, prompt_format.tool or "")
        self._begins = tokenizer.leading_special_ids | _special_ids_in(prompt_format.bos, tokenizer)
        turn_begins = self._begins & _special_ids_in("".join(turns), tokenizer)
        self._turns_begin = bool(turn_begins)
        begins = (token for token, id_ in tokenizer.special_ids.items() if id_ in turn_begins)
        self._text_begin = prompt_format.bos or next(begins, "")
        self._text_end = eos_token if eos_token is not None and eos_token in tokenizer.special_ids else ""

    @property
    def special_tokens(self) -> frozenset[str]:
        """The control tokens of the tokenizer."""
        return self._tokenizer.special_tokens

    def segments(self, row: TrainingRow) -> list[Segment]:
        """The training text of a row."""
        if isinstance(row, Document):
            return render_document(row, self._text_begin, self._text_end)
        return render(
            row,
            self._format,
            special_tokens=self._tokenizer.special_tokens,
            task=self._task,
            train_on=self._train_on,
        )

    def encode(self, rows: Sequence[TrainingRow]) -> EncodedRows:
        """Tokenize and check rows together."""
        shapes: list[_Shape] = []
        planned: list[PlannedRow] = []
        for row in rows:
            if isinstance(row, Document):
                shape, contents = self._document_shape(row)
            else:
                contents = [message.content for message in row.messages]
                if self._format.strip_whitespace:
                    contents = [content.strip() for content in contents]
                shape = self._shape(row, contents)
            shapes.append(shape)
            planned.append(PlannedRow(shape.plan, contents))
        return EncodedRows(
            self._tokenizer.encode_planned(planned),
            [shape.problem for shape in shapes],
            np.array([shape.num_prompts for shape in shapes], dtype=np.int64),
            self._tokenizer.find_straddled(planned),
            np.array([shape.ends_with_terminator for shape in shapes], dtype=bool),
            np.array([isinstance(row, Document) and row.is_windowed for row in rows], dtype=bool),
        )

    def _document_shape(self, document: Document) -> tuple[_Shape, list[str]]:
        """The shape of a document, and the texts that fill it."""
        if document.is_windowed:
            return self._plain_shape, [segment.text for segment in document.segments]
        pieces, contents = self._cut_apart(document)
        shape = self._shapes.get(pieces)
        if shape is None:
            shape = self._new_document_shape(pieces)
            self._keep(pieces, shape)
        return shape, contents

    def _cut_apart(self, document: Document) -> tuple[tuple[_Piece, ...], list[str]]:
        """Control tokens and the texts between them, which are left open but where they are blank; and all texts."""
        pieces: list[_Piece] = []
        contents: list[str] = []
        for segment in document.segments:
            starts_answer = segment.starts_answer
            for place, text in enumerate(self._tokenizer.split(segment)):
                if text:
                    is_open = place % 2 == 0 and not text.isspace()
                    pieces.append((None if is_open else text, segment.weight, starts_answer))
                    contents.append(text)
                    starts_answer = False
        return tuple(pieces), contents

    def _new_document_shape(self, pieces: Sequence[_Piece]) -> _Shape:
        segments = [
            Segment("", weight, is_template=False, starts_answer=starts_answer, message=index)
            if text is None
            else Segment(text, weight, starts_answer=starts_answer)
            for index, (text, weight, starts_answer) in enumerate(pieces)
        ]
        row = self._tokenizer.cut(segments, open_contents=True)
        problem = RENDERED_WITH_TWO_BEGINNINGS if self._has_adjacent_begins(row) else None
        return _Shape(self._tokenizer.plan(row), problem, 0, _ends_with_control_token(row))

    @cached_property
    def _plain_shape(self) -> _Shape:
        """That of all plain texts."""
        if not self._text_end:
            logger.warning(
                "the tokenizer names no end-of-sequence token that is a control token of it: nothing is put behind "
                "plain texts, and the model does not learn where they end"
            )
        row = self._tokenizer.cut(self.segments(plain_text("")), open_contents=True)
        return _Shape(self._tokenizer.plan(row), None, 0, _ends_with_control_token(row))

    def _shape(self, conversation: Conversation, contents: Sequence[str]) -> _Shape:
        is_blank = [content.isspace() or not content for content in contents]
        if self._format.parse_special_in_content or True in is_blank:
            return self._new_shape(conversation, open_contents=False)
        key = tuple([(message.role, message.weight) for message in conversation.messages]), self._label(conversation)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._new_shape(conversation, open_contents=True)
            self._keep(key, shape)
        return shape

    def _label(self, conversation: Conversation) -> str | None:
        """The last answer, where it decides the shape of a row: a label may be a control token."""
        return conversation.messages[-1].content if self._task == "classification" else None

    def _keep(self, key: object, shape: _Shape) -> None:
        if len(self._shapes) < MAX_PLANS:
            self._shapes[key] = shape

    def _new_shape(self, conversation: Conversation, *, open_contents: bool) -> _Shape:
        row = self._tokenizer.cut(self.segments(conversation), open_contents=open_contents)
        answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        answers = answers[-1:] if self._last_only else answers
        differing = [
            number
            for number, index in enumerate(answers, start=1)
            if not self._begins_with_prompt(row, Conversation(conversation.messages[:index]), open_contents)
        ]
        num_trained = sum(conversation.messages[index].weight > 0 for index in answers)
        return _Shape(
            self._tokenizer.plan(row),
            self._problem(row, differing, num_trained),
            len(answers),
            _ends_with_control_token(row),
        )

    def _begins_with_prompt(self, row: CutRow, prompt: Conversation, open_contents: bool) -> bool:
        segments = render_prompt_segments(prompt, self._format)
        items = self._tokenizer.cut(segments, open_contents=open_contents).texts()
        return row.texts()[: len(items)] == items

    def _problem(self, row: CutRow, differing: Sequence[int], num_trained: int) -> str | None:
        if differing:
            remedy = SYSTEM_MOVES if self._format.system_in_last_user else ""
            return PROMPT_DIFFERS.format(number=differing[0]) + remedy
        if self._begins_twice(row):
            return TWO_BEGINNINGS
        num_ends = len([token for token in _trained_tokens(row) if token == self._terminator])
        return NO_TERMINATOR if self._terminator is not None and num_ends < num_trained else None

    def _begins_twice(self, row: CutRow) -> bool:
        """Whether BOS follows BOS, or stands inside a text whose format has it at the begin only."""
        return self._has_adjacent_begins(row) or (not self._turns_begin and len(self._find_begins(row)) > 1)

    def _has_adjacent_begins(self, row: CutRow) -> bool:
        return any(right - left == 1 for left, right in pairwise(self._find_begins(row)))

    def _find_begins(self, row: CutRow) -> list[int]:
        return [
            index for index, item in enumerate(row.items) if isinstance(item, Special) and item.token in self._begins
        ]


def job_encoder(job: JobConfig, eos_token: str | None, tokenizer: SegmentTokenizer) -> RowEncoder:
    """What turns the rows of a resolved job into examples."""
    return RowEncoder(job.prompt_format, tokenizer, cast(Task, job.task), job.dataset.train_on, eos_token)


def _trained_tokens(row: CutRow) -> list[int | None]:
    """Special tokens that carry loss, in order; None for ordinary text that does."""
    return [
        item.token if isinstance(item, Special) else None
        for item in row.items
        if (item.weight if isinstance(item, Special) else max(item.weights)) > 0
    ]


def _ends_with_control_token(row: CutRow) -> bool:
    trained = _trained_tokens(row)
    return bool(trained) and trained[-1] is not None


def _special_ids_in(text: str, tokenizer: SegmentTokenizer) -> frozenset[int]:
    return frozenset(tokenizer.special_ids[token] for token in tokenizer.split(Segment(text))[1::2])

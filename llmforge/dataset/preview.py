"""The first rows of a job as the model will see them: for people, so text with flags and no ids.

In: a resolved job and the tokenizer's text. Out: pieces of rendered text that say whether they are trained and whether
they are control tokens. Rows that the data stage would refuse are passed over here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

from llmforge.config.job import JobConfig
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import plan_blocks, read_lines
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.render import Task, render

PREVIEW_BYTES = 64 << 10


@dataclass(frozen=True)
class Piece:
    """A piece of rendered text."""

    text: str
    trained: bool
    is_control: bool
    """One control token, not characters that look like one."""


@dataclass(frozen=True)
class PreviewRow:
    """One row, rendered."""

    place: str
    """`file:line`."""
    pieces: tuple[Piece, ...]


def first_rows(job: JobConfig, tokenizer_json: str, cache_folder: Path, count: int) -> list[PreviewRow]:
    """The first `count` rows of the training data that can be trained on."""
    return list(islice(_rows(job, SegmentTokenizer(tokenizer_json), cache_folder), count))


def _rows(job: JobConfig, tokenizer: SegmentTokenizer, cache_folder: Path) -> Iterator[PreviewRow]:
    uris = [source.path for source in job.train_sources]
    for block in plan_blocks(uris, is_validation=False, block_bytes=PREVIEW_BYTES, cache_folder=cache_folder):
        for line, text in read_lines(block, cache_folder):
            try:
                conversation = parse_row(text, job.prompt_format)
            except DataError:
                continue
            segments = render(
                conversation,
                job.prompt_format,
                special_tokens=tokenizer.special_tokens,
                task=cast(Task, job.task),
                train_on=job.dataset.train_on,
            )
            pieces = (
                Piece(part, segment.trained, is_control=index % 2 == 1)
                for segment in segments
                for index, part in enumerate(tokenizer.split(segment))
                if part
            )
            yield PreviewRow(f"{block.uri}:{line}", tuple(pieces))

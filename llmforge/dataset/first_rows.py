"""The first rows of a job's training data, read one by one: for people to look at, and to prove things on."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.files import expand_uris
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import first_lines
from llmforge.errors import DataError
from llmforge.prompt.messages import Conversation


@dataclass(frozen=True)
class FirstRow:
    """One row, with its conversation or the reason why it has none."""

    number: int
    """Counted from 1 over all files."""
    uri: str
    line: int
    conversation: Conversation | None
    problem: str | None

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.uri}:{self.line}"


def first_rows(job: JobConfig, prompt_format: PromptFormat, cache_folder: Path) -> Iterator[FirstRow]:
    """The rows of the training data in the order of the files; no more is read than is asked for.

    Raises `DataError` for a missing file.
    """
    uris = expand_uris(source.path for source in job.train_sources)
    for number, (uri, line, text) in enumerate(first_lines(uris, cache_folder), start=1):
        try:
            conversation = parse_row(text, prompt_format, job.dataset)
        except DataError as error:
            yield FirstRow(number, uri, line, None, str(error))
        else:
            yield FirstRow(number, uri, line, conversation, None)


def first_conversations(
    job: JobConfig, prompt_format: PromptFormat, cache_folder: Path, count: int
) -> list[Conversation]:
    """The conversations of the first `count` rows, without those that are refused."""
    rows = islice(first_rows(job, prompt_format, cache_folder), count)
    return [row.conversation for row in rows if row.conversation is not None]

"""The first rows of a job's training data, read one by one: for people to look at, and to prove things on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.job_sources import JobSource, training_sources, with_format
from llmforge.dataset.labels import labelled
from llmforge.dataset.rows import parse_pair, parse_rated, parse_row
from llmforge.dataset.sources import first_lines
from llmforge.errors import DataError
from llmforge.prompt.document import TrainingRow


@dataclass(frozen=True)
class FirstRow:
    """One row, with what it was read as or the reason why it is refused."""

    number: int
    """Counted from 1 over all files."""
    uri: str
    line: int
    parsed: TrainingRow | None
    """Of a pair, the conversation with the chosen answer."""
    problem: str | None
    rejected: TrainingRow | None = None
    """Of a pair, the other conversation."""
    is_desirable: bool | None = None
    """Of a single answer that is rated, what its label says."""

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.uri}:{self.line}"


def first_rows(job: JobConfig, prompt_format: PromptFormat, cache_folder: Path) -> Iterator[FirstRow]:
    """The rows of the training data in the order of the files; no more is read than is asked for.

    Raises `DataError` for a missing file.
    """
    sources = (with_format(source, job.task, cache_folder, rated=job.is_rated) for source in training_sources(job))
    return read_rows(
        sources,
        prompt_format,
        cache_folder,
        of_pairs=job.is_paired,
        rated=job.is_rated,
        labels=job.labels,
    )


def read_rows(
    sources: Iterable[JobSource],
    prompt_format: PromptFormat,
    cache_folder: Path,
    *,
    of_pairs: bool = False,
    rated: bool = False,
    labels: Sequence[str] = (),
) -> Iterator[FirstRow]:
    """The rows of sources whose formats are known."""
    records = ((source.dataset, *record) for source in sources for record in first_lines(source.uris, cache_folder))
    for number, (dataset, uri, line, record) in enumerate(records, start=1):
        try:
            if of_pairs or (rated and dataset.format == "preference"):
                parsed, rejected = parse_pair(record, prompt_format, dataset)
                row = FirstRow(number, uri, line, parsed, None, rejected)
            elif rated:
                (answer,) = parse_rated(record, prompt_format, dataset)
                row = FirstRow(number, uri, line, answer.conversation, None, is_desirable=answer.is_desirable)
            else:
                row = FirstRow(number, uri, line, labelled(parse_row(record, prompt_format, dataset), labels), None)
        except DataError as error:
            yield FirstRow(number, uri, line, None, str(error))
        else:
            yield row


def parsed_rows(rows: Iterable[FirstRow], count: int) -> list[TrainingRow]:
    """What the first `count` of them were read as, without those that are refused."""
    return [row.parsed for row in islice(rows, count) if row.parsed is not None]

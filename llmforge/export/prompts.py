"""The conversations on which an export is proven: the run's own validation rows, as they were read for training.

In: a resolved job. Out: `ProofRow`s with the place they come from, and in words where they come from. Where the data
cannot be read, or hold no conversation, probe conversations take their place, and the words say so. Nothing is rendered
here.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.first_rows import read_rows
from llmforge.dataset.job_sources import JobSource, list_sources, with_format
from llmforge.errors import DataError, StorageError
from llmforge.prompt.messages import Conversation, Message, parse_conversation
from llmforge.prompt.template_probes import Rendering, probe_renderings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProofRow:
    """One training conversation."""

    place: str
    """`file:line`, or the name of a probe."""
    conversation: Conversation
    uri: str | None = None
    """Its file; None for a probe."""

    @property
    def prompt(self) -> Conversation:
        """What inference is given for its last answer."""
        return Conversation(self.conversation.messages[:-1])


@dataclass(frozen=True)
class ProofRows:
    """Conversations to prove something on."""

    rows: tuple[ProofRow, ...]
    origin: str
    """Where they come from, for a person."""
    are_data: bool
    """Rows of the run's own data, not probes."""


def proof_rows(job: JobConfig, count: int, cache_folder: Path) -> ProofRows:
    """The first rows of the validation data; of the training data where there is none; else probes."""
    try:
        sources = list_sources(job)
        for kind, chosen in (("validation", True), ("training", False)):
            found = [source for source in sources if source.is_validation is chosen]
            rows = tuple(islice(_conversations(found, job, cache_folder), count))
            if rows:
                return ProofRows(rows, f"{len(rows)} rows of the {kind} data", are_data=True)
        reason = "the data hold no conversations"
    except (DataError, StorageError) as error:
        reason = f"the data cannot be read: {str(error).splitlines()[0]}"
    _LOG.warning("no row of the run is compared, because %s; probe conversations take their place", reason)
    probes = tuple(islice(_probes(job.prompt_format), count))
    return ProofRows(probes, f"{len(probes)} probe conversations, because {reason}", are_data=False)


def _conversations(sources: Iterable[JobSource], job: JobConfig, cache_folder: Path) -> Iterator[ProofRow]:
    known = (with_format(source, job.task, cache_folder, rated=job.is_rated) for source in sources)
    for row in read_rows(known, job.prompt_format, cache_folder):
        if isinstance(row.parsed, Conversation):
            yield ProofRow(row.place, row.parsed, row.uri)


def _probes(prompt_format: PromptFormat) -> Iterator[ProofRow]:
    """Training conversations that the format takes."""
    for rendering in probe_renderings([]):
        if not rendering.is_prompt and _is_taken(rendering, prompt_format):
            yield ProofRow(rendering.name, Conversation(rendering.messages))


def _is_taken(rendering: Rendering, prompt_format: PromptFormat) -> bool:
    try:
        parse_conversation([_raw(message) for message in rendering.messages], prompt_format)
    except DataError:
        return False
    return True


def _raw(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}

"""The prompt format of a job that gives none and whose model is of no known family: from the tokenizer's chat template.

In: a job as submitted and the chat template that lies beside its tokenizer. Out: the same job with the format written
down, so that everything after this has one. What a format must prove is said in `prompt/template_import.py`.
"""

import logging
from pathlib import Path

from llmforge.config.families import find_family, find_refused_family
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import GenerationConfig
from llmforge.dataset.first_rows import first_rows, parsed_rows
from llmforge.errors import ConfigError
from llmforge.prompt.messages import Conversation
from llmforge.prompt.template_import import TokenizerTemplate, check_reproduces, import_prompt_format

logger = logging.getLogger(__name__)

NUM_COMPARED_ROWS = 32


def needs_import(job: JobConfig) -> bool:
    """Whether a job's format can come only from its tokenizer; that of a job which names a run is the run's."""
    own = job.generation_config is not None and job.generation_config.prompt_format is not None
    return (
        not own
        and not job.earlier_runs
        and find_family(job.model_id) is None
        and find_refused_family(job.model_id) is None
    )


def with_imported_format(job: JobConfig, template: TokenizerTemplate | None, cache_folder: Path) -> JobConfig:
    """The job with a prompt format, imported where it needs to be.

    A template is taken over only if the format made of it renders the same texts, for probes and for the job's own
    first rows. Raises `ConfigError` where there is no template, or none that a format can say.
    """
    if not needs_import(job):
        return job
    if template is None:
        raise ConfigError(
            f"model_id: no prompt format is known for {job.model_id!r}, and its tokenizer has no chat template; give "
            "one in generation_config.prompt_format (docs/prompt-formats.md shows how)"
        )
    found = import_prompt_format(template)
    rows = parsed_rows(first_rows(job, found, cache_folder), NUM_COMPARED_ROWS)
    conversations = [row for row in rows if isinstance(row, Conversation)]
    check_reproduces(found, template, conversations)
    logger.info(
        "prompt format: taken from the tokenizer's chat template, which it reproduces (the first %d rows of the data "
        "among others)",
        len(conversations),
    )
    generation = job.generation_config or GenerationConfig()
    return job.model_copy(update={"generation_config": generation.model_copy(update={"prompt_format": found})})

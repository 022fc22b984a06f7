"""The labels of a classifier, looked at before anything starts: each is one token behind a prompt.

This is told where a local tokenizer and the packages to run it are there; otherwise at the start of the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import ConfigError, ModelError


def find_label_problems(job: JobConfig, prompt_format: PromptFormat | None) -> Iterator[Finding]:
    """What is wrong with the labels of a submitted job; `prompt_format` is None where it is not known yet."""
    folder = Path(job.model_id)
    if not job.labels or prompt_format is None or not (folder / "tokenizer.json").is_file():
        return
    try:
        from llmforge.dataset.labels import find_label_tokens, labelled_tokenizer
        from llmforge.dataset.tokenize import SegmentTokenizer
        from llmforge.models.folder import read_tokenizer_json
    except ImportError:
        return
    try:
        extended = labelled_tokenizer(job.labels, prompt_format, read_tokenizer_json(folder))
        find_label_tokens(job.labels, prompt_format, SegmentTokenizer(extended))
    except ModelError:  # told of the model itself
        return
    except ConfigError as error:
        yield from (Finding(("classifier_config", "label_tokens"), problem.message) for problem in error.problems)

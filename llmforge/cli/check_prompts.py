"""The prompts of `evaluation`, looked at before anything starts: their form, by the prompt format, and their length.

How long they are is told where a local tokenizer and the packages to run it are there; otherwise at the start of the
job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmforge.cli.places import cache_folder
from llmforge.config.finding import Finding
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.errors import ModelError

if TYPE_CHECKING:
    from llmforge.prompt.messages import Conversation


def find_prompt_problems(job: JobConfig, prompt_format: PromptFormat | None) -> Iterator[Finding]:
    """What is wrong with the prompts of a submitted job; `prompt_format` is None where it is not known yet."""
    if job.evaluation is None:
        return
    from llmforge.answers.evaluation_prompts import check_prompts, read_evaluation_prompts

    found = read_evaluation_prompts(job.evaluation, cache_folder())
    yield from found.problems
    if prompt_format is not None:
        yield from check_prompts(
            found.prompts, prompt_format, _length_check(job, prompt_format, job.evaluation.max_tokens)
        )


def _length_check(
    job: JobConfig, prompt_format: PromptFormat, max_tokens: int
) -> Callable[[Conversation], None] | None:
    folder = Path(job.model_id)
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        from llmforge.answers.prompt_maker import PromptMaker
        from llmforge.dataset.labels import labelled_tokenizer
        from llmforge.dataset.tokenize import SegmentTokenizer
        from llmforge.models.folder import read_model_facts, read_tokenizer_json
    except ImportError:
        return None
    try:
        tokenizer = labelled_tokenizer(job.labels, prompt_format, read_tokenizer_json(folder))
        context_length = read_model_facts(folder).context_length
    except ModelError:  # told of the model itself
        return None
    generation = job.generation_config or GenerationConfig()
    maker = PromptMaker(prompt_format, generation, SegmentTokenizer(tokenizer), context_length)
    return lambda prompt: maker.check_room(prompt, max_tokens)

"""A job resolved on one machine: what a command needs that looks at data and takes no step.

In: a checked job. Out: the job with its defaults and its prompt format, and the small files of its model. It needs
neither a cluster nor a weight, and imports neither Ray nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from llmforge.checkpoint.earlier_runs import find_earlier_runs, with_format_of
from llmforge.cli.places import cache_folder
from llmforge.config.deepspeed import read_deepspeed
from llmforge.config.job import JobConfig
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.dataset.job_format import with_imported_format
from llmforge.dataset.labels import tokenizer_with_labels
from llmforge.dataset.tokenize import TokenizerText, special_tokens
from llmforge.models.folder import ModelFiles, model_folder, read_model_files


@dataclass(frozen=True)
class LocalJob:
    """A resolved job, but for what is measured from the data, and what its model's files say."""

    job: JobConfig
    model: ModelFiles

    @property
    def tokenizer(self) -> TokenizerText:
        """What the tokenizer's files say."""
        return TokenizerText(self.model.tokenizer_json, self.model.eos_token)

    @property
    def special_tokens(self) -> frozenset[str]:
        """The control tokens of the tokenizer."""
        return frozenset(special_tokens(self.model.tokenizer_json))


def resolve_locally(job: JobConfig) -> LocalJob:
    """Fetch the small files of the model, where they are on the hub, and resolve the job. Raises `LlmforgeError`."""
    model = read_model_files(model_folder(job.model_id, with_weights=False))
    facts = JobFacts(
        # Which devices there are does not matter to the data; training asks.
        has_gpu=job.accelerator != "cpu",
        started_at=datetime.now(),
        model_context_length=model.facts.context_length,
        model=model.facts.sizes,
    )
    job = with_imported_format(read_deepspeed(job), model.template, cache_folder())
    job = with_format_of(job, find_earlier_runs(job))
    job = resolve_job(job, facts)
    return LocalJob(job, replace(model, tokenizer_json=tokenizer_with_labels(job, model.tokenizer_json)))

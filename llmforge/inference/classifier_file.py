"""`classifier.json` beside the weights of a checkpoint or an export, and what it means for answers.

In: what of a model can be fetched. Out: its `Classifier`, or None for a model that writes text; and how a model is to
answer, which for a classifier is with one token and nothing drawn.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import ValidationError

from llmforge.config.base import first_problem
from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import CheckpointError


def read_classifier(paths: Collection[str], fetch: Callable[[list[str]], Path]) -> Classifier | None:
    """That of a model with these files. Raises `CheckpointError` where this llmforge does not understand it."""
    if CLASSIFIER_FILE not in paths:
        return None
    path = fetch([CLASSIFIER_FILE]) / CLASSIFIER_FILE
    try:
        return Classifier.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: not the classifier of a model as this llmforge writes it: {first_problem(error)}. Another "
            "version has written it: use that one"
        ) from error


def answer_config(job: JobConfig, classifier: Classifier | None) -> GenerationConfig:
    """How a model of a resolved job answers."""
    generation = job.generation_config
    assert generation is not None
    if classifier is None:
        return generation
    return GenerationConfig(
        prompt_format=generation.prompt_format, stopping_sequences=generation.stopping_sequences, max_tokens=1
    )

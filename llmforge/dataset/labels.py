"""Labels of a classifier in the data: which rows have one, and which token each of them is.

In: a job's labels, its prompt format and the tokenizer of its model. Out: the tokenizer with a new token for every
label that is several; a `Classifier`, or an error that says which label is not one token behind a prompt; and rows
whose last answer is a label. A classifier answers with one token, the first behind its prompt, so the label must be
that token in every row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmforge.config.added_label_rules import find_added_label_problems
from llmforge.config.classifier import Classifier
from llmforge.config.finding import path_text
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.training import ClassifierConfig
from llmforge.dataset.added_tokens import added_tokens, with_added_tokens
from llmforge.dataset.row_encoder import EncodedRows
from llmforge.dataset.stats import DatasetStats
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ConfigError, DataError, Problem
from llmforge.prompt.document import Document, TrainingRow
from llmforge.prompt.messages import Conversation, Message
from llmforge.prompt.render import compile_templates, render

logger = logging.getLogger(__name__)

_KEY = "classifier_config.label_tokens"
_PROBE = "x"
NO_LABEL = "the answer is not one token that is a label, as it stands in this row; look at the end of the prompt"


def new_classifier(job: JobConfig, tokenizer: SegmentTokenizer) -> Classifier:
    """That of a resolved job, before anything is measured.

    Raises `ConfigError` where a label is not one token of its own behind a prompt.
    """
    config = job.classifier_config
    assert config is not None
    return Classifier(
        labels=job.labels,
        token_ids=find_label_tokens(job.labels, job.prompt_format, tokenizer),
        positive_label=config.positive_label,
        threshold=0.5 if config.threshold == "auto" else config.threshold,
    )


def find_label_tokens(
    labels: Sequence[str], prompt_format: PromptFormat, tokenizer: SegmentTokenizer
) -> tuple[int, ...]:
    """The token of each label. Raises `ConfigError` where one is not one token of its own behind a prompt."""
    ids = [_ids(label, prompt_format, tokenizer) for label in labels]
    problems = [
        _why_not_one(label, found, prompt_format, tokenizer)
        for label, found in zip(labels, ids, strict=True)
        if len(found) != 1
    ]
    owners: dict[tuple[int, ...], str] = {}
    for label, found in zip(labels, map(tuple, ids), strict=True):
        if owners.setdefault(found, label) != label:
            problems.append(f"found {owners[found]!r} and {label!r}, which are the same token; choose other texts")
    if problems:
        raise ConfigError.from_problems([Problem(problem, _KEY) for problem in problems])
    return tuple(found[0] for found in ids)


def labelled_tokenizer(labels: Sequence[str], prompt_format: PromptFormat, tokenizer_json: str) -> str:
    """The tokenizer of a job: with a new control token for each of its labels that is several tokens behind a prompt.

    Nothing is added where the format writes something between the end of a prompt and its answer, which a model would
    have to write before the label.
    """
    if not labels or compile_templates(prompt_format, frozenset()).answer_head:
        return tokenizer_json
    tokenizer = SegmentTokenizer(tokenizer_json)
    return with_added_tokens(
        tokenizer_json, [label for label in labels if len(_ids(label, prompt_format, tokenizer)) != 1]
    )


def added_label_ids(job: JobConfig, tokenizer_json: str) -> tuple[int, ...]:
    """Ids of the labels that a resolved job adds to this tokenizer, that of its model."""
    extended = labelled_tokenizer(job.labels, job.prompt_format, tokenizer_json)
    return tuple(added_tokens(tokenizer_json, extended).values())


def tokenizer_with_labels(job: JobConfig, tokenizer_json: str) -> str:
    """`labelled_tokenizer` of a resolved job, looked at before it starts: what is added is said.

    Raises `ConfigError` where a label is not one token of its own behind a prompt, or the job cannot train new ones.
    """
    if not job.labels:
        return tokenizer_json
    extended = labelled_tokenizer(job.labels, job.prompt_format, tokenizer_json)
    find_label_tokens(job.labels, job.prompt_format, SegmentTokenizer(extended))
    added = tuple(added_tokens(tokenizer_json, extended))
    if added:
        problems = [Problem(one.message, path_text(one.path)) for one in find_added_label_problems(job, added)]
        if problems:
            raise ConfigError.from_problems(problems)
        logger.warning(
            "classifier_config.label_tokens: %s are no tokens of this tokenizer and are added to it; the model learns "
            "them from nothing, and whoever serves it needs the tokenizer of the checkpoint",
            ", ".join(map(repr, added)),
        )
    return extended


def labelled(row: TrainingRow, labels: Sequence[str]) -> TrainingRow:
    """A row for a classifier with these labels, or any row where there are none.

    Raises `DataError` where its last answer is none of them.
    """
    if not labels:
        return row
    if isinstance(row, Document):
        raise DataError("the row holds its text itself and has no answer; give messages whose last answer is a label")
    *before, answer = row.messages
    label = answer.content.strip()
    if label not in labels:
        listed = ", ".join(map(repr, labels))
        raise DataError(f"the last answer is {_shortened(label)!r}, allowed by classifier_config: {listed}")
    return Conversation((*before, Message("assistant", label, answer.weight)))


def with_labels_checked(encoded: EncodedRows, token_ids: Sequence[int]) -> EncodedRows:
    """The same rows, those marked whose trained text is none of these tokens, where there are any."""
    if not token_ids:
        return encoded
    examples = encoded.examples
    is_trained = examples.weights > 0
    is_label = is_trained & np.isin(examples.input_ids, token_ids)
    num_trained, num_labels = examples.sums(is_trained), examples.sums(is_label)
    is_wrong = (num_trained > 0) & ((num_trained != 1) | (num_labels != 1))
    problems = [
        problem or (NO_LABEL if wrong else None) for problem, wrong in zip(encoded.problems, is_wrong, strict=True)
    ]
    return replace(encoded, problems=problems)


def count_labels(last_ids: NDArray[np.int32], labels: Sequence[str], token_ids: Sequence[int]) -> dict[str, int]:
    """How many examples that end with these tokens have each label."""
    return {label: int(np.count_nonzero(last_ids == token)) for label, token in zip(labels, token_ids, strict=True)}


def check_label_counts(config: ClassifierConfig, stats: DatasetStats) -> None:
    """Warn of labels that no row has, for a config with its defaults filled in.

    Raises `DataError` where the best evaluation is looked for by a measure that is not defined on these data.
    """
    for label, count in stats.train.labels.items():
        if count == 0:
            logger.warning("no training row has the label %s: the model does not learn when to choose it", label)
    missing = [] if stats.valid is None else [label for label, count in stats.valid.labels.items() if count == 0]
    for label in missing:
        logger.warning("no validation row has the label %s: its recall, F1 and prauc are not defined there", label)
    if config.positive_label in missing and config.best_by in ("f1", "prauc"):
        raise DataError(
            f"classifier_config.best_by: found {config.best_by}, which is not defined where no validation row has the "
            f"label {config.positive_label}; give validation rows of it, or set best_by to loss or accuracy"
        )


def _ids(label: str, prompt_format: PromptFormat, tokenizer: SegmentTokenizer) -> list[int]:
    """What is trained of a row with this label."""
    conversation = Conversation((Message("user", _PROBE), Message("assistant", label)))
    segments = render(conversation, prompt_format, special_tokens=tokenizer.special_tokens, task="classification")
    example = tokenizer.encode([segments])[0]
    ids: list[int] = example.input_ids[example.labels == example.input_ids].tolist()
    return ids


def _why_not_one(label: str, ids: Sequence[int], prompt_format: PromptFormat, tokenizer: SegmentTokenizer) -> str:
    words = ", ".join(tokenizer.words(ids))
    found = f"found {label!r}, which is {len(ids)} tokens behind a prompt ({words}), allowed is one"
    head = compile_templates(prompt_format, frozenset()).answer_head
    if head and (head.strip() or label in tokenizer.special_ids):
        return (
            f"{found}; the prompt format writes {head!r} before the answer, which the model would have to write first: "
            "move it into generation_config.prompt_format.trailing_assistant"
        )
    cue = f", or move {head!r} into generation_config.prompt_format.trailing_assistant, and it is added" if head else ""
    return f"{found}; choose another text for it, such as a shorter word, in label_tokens and in the data{cue}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."

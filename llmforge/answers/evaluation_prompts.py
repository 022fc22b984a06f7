"""The prompts that a job has answered at every evaluation: read and checked before anything starts.

In: `evaluation` of a job. Out: its prompts as messages, with their places, or what is wrong with each. Checking them by
a prompt format needs no tokenizer; whoever has one hands in what tells the room for an answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.answers.prompt_file import read_prompt_file
from llmforge.answers.prompt_rows import read_prompt_rows
from llmforge.config.finding import Finding, path_text
from llmforge.config.finding import Path as KeyPath
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.run import MOST_EVALUATION_PROMPTS, EvaluationConfig, EvaluationPrompt, PromptMessages
from llmforge.errors import ConfigError, DataError, Problem, StorageError
from llmforge.prompt.messages import Conversation, parse_conversation

_KEY: KeyPath = ("evaluation", "prompts")


@dataclass(frozen=True)
class EvaluationPrompts:
    """What was found of the prompts of a job."""

    prompts: Sequence["PlacedPrompt"]
    problems: Sequence[Finding]


@dataclass(frozen=True)
class PlacedPrompt:
    """One prompt and where it stands."""

    raw_messages: Sequence[object]
    path: KeyPath
    """Of the key in the job."""
    place: str = ""
    """`file:line` of a prompt in a file of its own."""

    def problem(self, text: str) -> Finding:
        """What is wrong with it."""
        return Finding(self.path, f"{self.place}: {text}" if self.place else text)


def read_evaluation_prompts(evaluation: EvaluationConfig, cache_folder: Path) -> EvaluationPrompts:
    """The prompts as they stand in the job, or in the file that it names."""
    given = evaluation.prompts
    if not isinstance(given, str):
        prompts = [PlacedPrompt(messages_of(prompt), (*_KEY, index)) for index, prompt in enumerate(given)]
        return EvaluationPrompts(prompts, ())
    try:
        checked = read_prompt_rows(read_prompt_file(given, cache_folder), given)
    except (DataError, StorageError) as error:
        return EvaluationPrompts((), [Finding(_KEY, str(error))])
    problems = [Finding(_KEY, problem) for problem in checked.problems]
    if not checked.rows and not problems:
        problems.append(Finding(_KEY, f"{given}: no rows; expected one JSON object with `messages` per line"))
    if len(checked.rows) > MOST_EVALUATION_PROMPTS:
        found = f"{given}: found {len(checked.rows)} prompts, allowed are at most {MOST_EVALUATION_PROMPTS}"
        why = "the training waits for the answers at every evaluation"
        problems.append(Finding(_KEY, f"{found}, since {why}; llmforge generate answers more, from any checkpoint"))
    return EvaluationPrompts(
        [PlacedPrompt(row.messages, _KEY, f"{given}:{row.line}") for row in checked.rows], problems
    )


def messages_of(prompt: EvaluationPrompt) -> Sequence[object]:
    """The messages of a prompt; a text is one of the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return list(prompt.messages if isinstance(prompt, PromptMessages) else prompt)


def check_prompts(
    prompts: Sequence[PlacedPrompt],
    prompt_format: PromptFormat,
    check_length: Callable[[Conversation], None] | None,
) -> Iterator[Finding]:
    """Whether the format takes each prompt; `check_length` raises `DataError` for one that is too long."""
    for prompt in prompts:
        try:
            conversation = parse_conversation(prompt.raw_messages, prompt_format, for_training=False)
            if check_length is not None:
                check_length(conversation)
        except DataError as error:
            yield prompt.problem(str(error))


def with_checked_prompts(job: JobConfig, check_length: Callable[[Conversation], None], cache_folder: Path) -> JobConfig:
    """A resolved job that has prompts, with all of them written in it: every worker and a later reader has the same.

    Raises `ConfigError` with every problem.
    """
    assert job.evaluation is not None
    found = read_evaluation_prompts(job.evaluation, cache_folder)
    problems = [*found.problems, *check_prompts(found.prompts, job.prompt_format, check_length)]
    if problems:
        raise ConfigError.from_problems([Problem(problem.message, path_text(problem.path)) for problem in problems])
    prompts = [{"messages": prompt.raw_messages} for prompt in found.prompts]
    evaluation = EvaluationConfig.model_validate({"prompts": prompts, "max_tokens": job.evaluation.max_tokens})
    return job.model_copy(update={"evaluation": evaluation})

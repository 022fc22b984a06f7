"""The prompts of a job that are answered at its evaluations: which forms they may have."""

from __future__ import annotations

import pytest

from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_from_yaml, job_to_yaml
from llmforge.config.resolve import job_digest
from tests.config.conftest import Load, Problems

VALID = "valid_path: a.jsonl\n"
FORMS = """\
evaluation:
  max_tokens: 7
  prompts:
    - How are you?
    - - {role: system, content: Be brief.}
      - {role: user, content: "1 + 1?"}
    - messages: [{role: user, content: Hi}]
"""


def test_the_forms_of_a_prompt(load: Load) -> None:
    job = load(VALID + FORMS)
    again = JobConfig.model_validate_json(job.model_dump_json())  # as it travels to a worker
    for found in (job, again, job_from_yaml(job_to_yaml(job))):  # and as a run keeps it
        assert found.evaluation == job.evaluation
    assert job.evaluation is not None and job.evaluation.max_tokens == 7
    assert not isinstance(job.evaluation.prompts, str)
    text, messages, conversation = job.evaluation.prompts
    assert text == "How are you?"
    assert messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    assert not isinstance(conversation, str | tuple) and conversation.messages == ({"role": "user", "content": "Hi"},)


def test_a_path_and_the_default(load: Load) -> None:
    evaluation = load(VALID + "evaluation: {prompts: s3://bucket/prompts.jsonl}").evaluation
    assert evaluation is not None and (evaluation.prompts, evaluation.max_tokens) == ("s3://bucket/prompts.jsonl", 256)


def test_other_prompts_are_no_other_job(load: Load) -> None:
    """So that a run goes on where its prompts have changed."""
    with_prompts, without = load(VALID + FORMS), load(VALID)
    assert job_digest(with_prompts) == job_digest(without)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{prompts: []}", "evaluation.prompts: found an empty list, allowed is text or a list of 1 to 100"),
        (
            f"{{prompts: [{', '.join(['a'] * 101)}]}}",
            "evaluation.prompts: found a list of 101, allowed is text or a list of 1 to 100",
        ),
        ("{prompts: [{message: hi}]}", "evaluation.prompts[0].message: unknown key (did you mean messages?)"),
        ("{prompts: [[hi]]}", "evaluation.prompts[0][0]: found the text 'hi', allowed is a mapping"),
        ("{max_tokens: 5}", "evaluation.prompts: required, but missing"),
        ("{prompts: [a], max_tokens: 0}", "max_tokens: found 0, allowed is a whole number at least 1 and at most 2048"),
        ("{prompts: [a], max_tokens: 2049}", "found 2049, allowed is a whole number at least 1 and at most 2048"),
    ],
)
def test_what_is_refused(problems: Problems, value: str, problem: str) -> None:
    assert any(problem in line for line in problems(f"{VALID}evaluation: {value}\n"))


def test_without_validation_data_there_is_no_evaluation(problems: Problems) -> None:
    assert problems("evaluation: {prompts: [a]}\n") == [
        "job.yaml:3: evaluation: needs validation data; add valid_path or dataset.valid_fraction"
    ]

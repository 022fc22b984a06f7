"""Many prompts at once: which stand together, and that every answer is the one that the prompt has alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from llmforge.answers.batch import Answer, BatchLimits, Prompt, answer_prompts, plan_batches
from llmforge.answers.sampling import Sampling
from llmforge.inference.generate import Generator
from llmforge.inference.load import TrainedModel
from tests.inference.runs import generated_by, make_job, reference, spelled


def prompts_of(*sizes: tuple[int, int]) -> list[Prompt]:
    """Prompts of (tokens, room)."""
    return [Prompt([0] * length, room, index) for index, (length, room) in enumerate(sizes)]


def indexes(batches: list[list[Prompt]]) -> list[list[int]]:
    return [[prompt.index for prompt in batch] for batch in batches]


def test_prompts_of_like_length_stand_together() -> None:
    prompts = prompts_of((5, 10), (50, 10), (6, 10), (49, 10), (7, 10))
    assert indexes(plan_batches(prompts, BatchLimits(num_rows=2), mixes_rooms=True)) == [[1, 3], [4, 2], [0]]
    assert indexes(plan_batches(prompts, BatchLimits(num_tokens=120), mixes_rooms=True)) == [[1, 3], [4, 2, 0]]
    assert indexes(plan_batches(prompts, BatchLimits(num_tokens=119), mixes_rooms=True)) == [[1], [3, 4], [2, 0]]
    assert indexes(plan_batches(prompts, BatchLimits(num_tokens=1), mixes_rooms=True)) == [[1], [3], [4], [2], [0]]
    assert plan_batches([], BatchLimits(), mixes_rooms=True) == []


def test_rooms_are_mixed_only_where_the_model_bears_it() -> None:
    prompts = prompts_of((90, 10), (80, 20), (60, 30), (50, 30))
    assert indexes(plan_batches(prompts, BatchLimits(), mixes_rooms=True)) == [[0, 1, 2, 3]]
    assert indexes(plan_batches(prompts, BatchLimits(), mixes_rooms=False)) == [[0], [1], [2, 3]]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 50)), max_size=30),
    num_rows=st.none() | st.integers(1, 8),
    num_tokens=st.none() | st.integers(1, 600),
    mixes_rooms=st.booleans(),
)
def test_batches_keep_their_limits(
    sizes: list[tuple[int, int]], num_rows: int | None, num_tokens: int | None, mixes_rooms: bool
) -> None:
    batches = plan_batches(prompts_of(*sizes), BatchLimits(num_rows, num_tokens), mixes_rooms=mixes_rooms)
    assert sorted(index for batch in indexes(batches) for index in batch) == list(range(len(sizes)))
    for batch in batches:
        size = len(batch) * (max(len(prompt.ids) for prompt in batch) + max(prompt.room for prompt in batch))
        assert len(batch) == 1 or num_tokens is None or size <= num_tokens
        assert num_rows is None or len(batch) <= num_rows
        assert mixes_rooms or len({prompt.room for prompt in batch}) == 1


@pytest.fixture(scope="module")
def questions(material: Path) -> list[str]:
    """Of very different lengths."""
    with (material / "data" / "chat" / "gsm8k-train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(15)]
    return ["Once", *(row["messages"][0]["content"] for row in rows)]


def with_generation(model: TrainedModel, **generation_config: Any) -> TrainedModel:
    return replace(model, job=make_job(Path(model.job.model_id), generation_config=generation_config))


def prompts_to(generator: Generator, questions: list[str], sampling: Sampling) -> list[Prompt]:
    conversations = [generator.parse([{"role": "user", "content": question}]) for question in questions]
    return [generator.prompt(conversation, sampling, index) for index, conversation in enumerate(conversations)]


def answers_in(generator: Generator, batches: list[list[Prompt]], sampling: Sampling) -> list[Answer]:
    """The answers in the order of the input, when batches are as given."""
    found = [answer for prompts in batches for batch in generator.answer_all(prompts, sampling, BatchLimits())
             for answer in batch]  # fmt: skip
    return sorted(found, key=lambda answer: answer.index)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers_alone(model: TrainedModel, questions: list[str]) -> None:
    generator = Generator(with_generation(model, max_tokens=30))
    prompts = prompts_to(generator, questions, Sampling())
    answers = answers_in(generator, [prompts], Sampling())
    alone = reference(model.job.model_id)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = generated_by(alone, prompt.ids, 30)
        assert answer.text == spelled(expected, model.decoder).removeprefix(" ")
        assert answer.num_tokens == len(expected) + answer.is_complete


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "stopping"),
    [
        (Sampling(), []),
        (Sampling(stop=(".",)), []),
        (Sampling(stop=("Lily", " th", "\n")), []),
        (Sampling(), [403, [426, 432]]),
        (Sampling(temperature=1.0, seed=7), []),
        (Sampling(temperature=1.5, seed=7, top_p=0.8, top_k=40, min_p=0.01, stop=("e",)), []),
    ],
    ids=["greedy", "stop text", "stop texts", "stop tokens", "sampled", "narrowed"],
)
def test_an_answer_does_not_depend_on_its_neighbours(
    model: TrainedModel, questions: list[str], sampling: Sampling, stopping: list[object]
) -> None:
    generator = Generator(with_generation(model, max_tokens=25, stopping_sequences=stopping or None))
    prompts = prompts_to(generator, questions, sampling)
    together = answers_in(generator, [prompts], sampling)
    assert together == answers_in(generator, [[prompt] for prompt in prompts], sampling)
    assert together == answers_in(generator, [prompts[3::-1], prompts[:3:-1]], sampling)
    if sampling.temperature is None:
        conversation = generator.parse([{"role": "user", "content": questions[5]}])
        assert generator.answer(conversation, sampling) == together[5].text
    else:
        assert len({answer.text for answer in together}) > 10
        other = replace(sampling, seed=8)
        assert answers_in(generator, [prompts], other) != together
    assert not any(stop in answer.text for stop in sampling.stop for answer in together)


@pytest.mark.slow
def test_a_batch_ends_with_its_last_row(model: TrainedModel, questions: list[str]) -> None:
    """A row that has come to its stop text keeps nobody waiting."""
    generator = Generator(with_generation(model, max_tokens=200))
    sampling = Sampling(stop=(" ", "."))
    num_calls = 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    hook = model.model.register_forward_hook(count)
    answers = answers_in(generator, [prompts_to(generator, questions, sampling)], sampling)
    hook.remove()
    assert all(answer.is_complete for answer in answers)
    assert num_calls == max(answer.num_tokens for answer in answers) < 30


@pytest.mark.slow
def test_every_row_has_its_own_room(model: TrainedModel) -> None:
    """Of the context of 512 tokens; the longest prompts leave least of it."""
    generator = Generator(with_generation(model, max_tokens=40))
    texts = ["a " * (num_tokens - 3) + "a" for num_tokens in (5, 480, 495, 505)]
    prompts = prompts_to(generator, texts, Sampling())
    rooms = [min(40, 512 - len(prompt.ids)) for prompt in prompts]
    assert [prompt.room for prompt in prompts] == rooms
    assert rooms[0] == 40 > rooms[1] > rooms[2] > rooms[3]
    answers = answers_in(generator, [prompts], Sampling())
    alone = reference(model.job.model_id)
    for prompt, room, answer in zip(prompts, rooms, answers, strict=True):
        expected = generated_by(alone, prompt.ids, room)
        assert answer.text == spelled(expected, model.decoder).removeprefix(" ")


@pytest.mark.slow
def test_a_model_with_a_table_of_positions(model: TrainedModel) -> None:
    """Its table ends where the context does, whatever the rows of a batch have left."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0)
    small = GPT2LMHeadModel(config).eval()
    answer_format = replace(model.answer_format, context_length=32, end_of_sequence_ids=frozenset())
    sizes = (3, 8, 20, 29, 31)
    prompts = [
        Prompt(list(range(5, 5 + size)), answer_format.room(size, Sampling()), place)
        for place, size in enumerate(sizes)
    ]
    together = [answer for batch in answer_prompts(small, answer_format, prompts, Sampling(), BatchLimits())
                for answer in batch]  # fmt: skip
    alone = [next(answer_prompts(small, answer_format, [prompt], Sampling(), BatchLimits()))[0] for prompt in prompts]
    assert sorted(together, key=lambda answer: answer.index) == alone
    assert [answer.num_tokens for answer in alone] == [29, 24, 12, 3, 1]

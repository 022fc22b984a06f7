"""What the loop does when: the order of step, log, evaluate and save, early stopping, and going on in the middle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.config.operations import StepOperations, Weights
from llmforge.config.training import EarlyStopping
from llmforge.errors import StorageError
from llmforge.metrics.meters import StepMeter
from llmforge.train.batches import StepBatches
from llmforge.train.engine import StepResult, TrainingEngine
from llmforge.train.evaluate import EvaluationResult
from llmforge.train.loop import LoopParts, LoopPlan, seed_step, train
from llmforge.train.requests import Request
from llmforge.train.state import TrainerState

Entry = tuple[str, float]
"""What happened, and a number that tells which: the index of the batch, the step of a record or a checkpoint."""

PLAN = LoopPlan(
    max_steps=7, steps_per_epoch=4, evaluation_interval_steps=3, eval_first=False, early_stopping=None, seed=11
)


OPERATIONS = StepOperations(
    decoder=Weights(trained=100), head=Weights(trained=10), num_layers=1, attention_width=8, num_parameters=120
)


def learning_rate(step: int) -> float:
    return 0.01 * step


@dataclass
class World:
    """All that the loop touches. It keeps a journal of what it was asked to do."""

    validation_losses: Iterable[float] = ()
    rank: int = 0
    journal: list[Entry] = field(default_factory=list)
    records: list[dict[str, float]] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    random_numbers: list[float] = field(default_factory=list)
    timed_saves: list[int] = field(default_factory=list)
    saved: list[TrainerState] = field(default_factory=list)
    phases: list[Entry] = field(default_factory=list)
    requests: Mapping[int, Request] = field(default_factory=dict)
    """By the step during which they are first heard."""
    last_request: Request = field(default_factory=Request)
    upload_error_at_step: int | None = None
    is_finished: bool = False
    is_asked: bool = False
    """Whether the job has prompts."""

    def run(self, plan: LoopPlan, state: TrainerState | None = None) -> TrainerState:
        """Train from a state, or from the start."""
        state = state or TrainerState()
        losses = iter(self.validation_losses)
        parts = LoopParts(
            engine=cast(TrainingEngine, Engine(self)),
            batches=Batches(),
            learning_rate=learning_rate,
            evaluate=None if self.validation_losses == () else partial(self._evaluate, lambda: next(losses)),
            checkpoints=self,
            supervision=self,
            logger=self,
            meter=StepMeter(2, 1e6),
            operations=OPERATIONS,
            answer_prompts=self._answer if self.is_asked else None,
        )
        train(parts, state, plan)
        return state

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if "save/seconds" in metrics:
            self.timed_saves.append(step)
            return
        if "eval/samples_seconds" in metrics:
            self.journal.append(("log answers", step))
            return
        kind = "log evaluation" if "eval/loss" in metrics else "log step"
        self.journal.append((kind, step))
        self.records.append({"step": step, **metrics})

    def close(self) -> None:
        raise AssertionError("the logger belongs to whoever made it")

    def _evaluate(self, next_loss: Callable[[], float]) -> EvaluationResult:
        self.journal.append(("evaluate", len(self.learning_rates)))
        return EvaluationResult(next_loss(), num_trained_tokens=50)

    def _answer(self, step: int) -> None:
        self.journal.append(("answer", step))

    def save(self, state: TrainerState) -> None:
        self.journal.append(("save", state.step))
        self.saved.append(TrainerState.model_validate_json(state.model_dump_json()))

    def check(self) -> None:
        if self.upload_error_at_step == len(self.learning_rates):
            raise StorageError("the bucket is gone")

    def finish(self) -> None:
        self.is_finished = True

    @property
    def request(self) -> Request:
        """What is asked of the run while it takes its next step."""
        return self.requests.get(len(self.learning_rates) + 1, self.last_request)

    def enter(self, phase: str, step: int, *, is_watched: bool = True) -> None:
        self.phases.append((phase, step))


class Batches:
    """Batches whose token counts tell their index."""

    def step(self, index: int) -> StepBatches:
        return StepBatches(
            micro_batches=[], num_trained_tokens=10 + index, loss_weight=10.0 + index, num_tokens=1000 + index
        )


class Engine:
    """Draws a random number where the real one would drop out activations."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rank = world.rank

    def step(self, batches: StepBatches, learning_rate: float, notice: int) -> StepResult:
        self._world.last_request = self._world.request
        self._world.journal.append(("step", batches.num_tokens - 1000))
        self._world.learning_rates.append(learning_rate)
        self._world.random_numbers.append(torch.rand(1).item())
        return StepResult(
            loss=batches.num_trained_tokens / 10,
            grad_norm=0.5,
            learning_rate=learning_rate,
            num_trained_tokens=batches.num_trained_tokens,
            num_tokens=batches.num_tokens,
            num_positions=batches.num_tokens + 24,
            num_token_pairs=5,
            peak_memory_bytes=(1000, 3000),
            part_seconds={"forward": 1.0, "backward": 2.0, "optimizer": 0.5},
            notice=notice,
        )


def steps(journal: list[Entry]) -> list[float]:
    return [number for kind, number in journal if kind == "step"]


def saves(journal: list[Entry]) -> list[float]:
    return [number for kind, number in journal if kind == "save"]


def test_a_whole_run() -> None:
    world = World(validation_losses=[3.0, 2.0, 1.0])
    state = world.run(PLAN)
    assert world.journal == [
        *[("step", 0), ("log step", 1), ("step", 1), ("log step", 2), ("step", 2), ("log step", 3)],
        *[("evaluate", 3), ("log evaluation", 3), ("save", 3)],
        *[("step", 3), ("log step", 4), ("step", 4), ("log step", 5), ("step", 5), ("log step", 6)],
        *[("evaluate", 6), ("log evaluation", 6), ("save", 6)],
        *[("step", 6), ("log step", 7)],
        *[("evaluate", 7), ("log evaluation", 7), ("save", 7)],
    ]
    assert [(evaluation.step, evaluation.loss) for evaluation in state.evaluations] == [(3, 3.0), (6, 2.0), (7, 1.0)]
    assert (state.step, state.seen_trained_tokens) == (7, sum(range(10, 17)))
    assert world.timed_saves == saves(world.journal)
    assert world.saved[-1] == state  # the evaluation of its own weights is in a checkpoint


def test_prompts_are_answered_behind_every_evaluation_and_before_its_checkpoint() -> None:
    world = World(validation_losses=[4.0, 3.0, 2.0, 1.0], is_asked=True)
    world.run(replace(PLAN, eval_first=True))
    others = ("evaluate", "step", "log step", "log evaluation")
    assert [entry for entry in world.journal if entry[0] not in others] == [
        *[("answer", 0), ("log answers", 0)],
        *[("answer", 3), ("log answers", 3), ("save", 3)],
        *[("answer", 6), ("log answers", 6), ("save", 6)],
        *[("answer", 7), ("log answers", 7), ("save", 7)],
    ]
    assert [phase for phase in world.phases if phase[0] == "answering prompts"] == [
        ("answering prompts", step) for step in (0, 3, 6, 7)
    ]
    resumed = World(validation_losses=[1.0], is_asked=True)
    resumed.run(PLAN, world.saved[1])
    assert [entry for entry in resumed.journal if entry[0] == "answer"] == [("answer", 7)]


def test_what_a_record_holds() -> None:
    world = World(validation_losses=[2.0, 2.0, 2.0])
    world.run(PLAN)
    step, evaluation = world.records[2], world.records[3]
    seconds = step.pop("train/step_seconds")
    assert seconds >= step.pop("train/data_seconds") >= 0
    # Both devices together, of 10^6 operations a second each.
    operations = 6 * (1002 * 100 + 12 * 10) + 5 * 12 * 8 / 2
    assert step.pop("train/mfu") == pytest.approx(operations / seconds / 2e6)
    assert step.pop("train/mfu_6n") == pytest.approx(6 * 120 * 1002 / seconds / 2e6)
    assert step.pop("train/tflops_per_device") == pytest.approx(operations / seconds / 2e12)
    for kind, count in (("tokens", 1002), ("trained_tokens", 12)):
        assert step.pop(f"train/{kind}_per_second") == pytest.approx(count / seconds)
        assert step.pop(f"train/{kind}_per_second_per_device") == pytest.approx(count / seconds / 2)
    assert step == {
        "step": 3,
        "epoch": 0.75,
        "train/loss": 1.2,
        "train/lr": 0.03,
        "train/grad_norm": 0.5,
        "train/forward_seconds": 1.0,
        "train/backward_seconds": 2.0,
        "train/optimizer_seconds": 0.5,
        "train/padding_share": pytest.approx(24 / 1026),
        "train/peak_memory_bytes": 3000,
    }
    assert evaluation.pop("eval/seconds") >= 0
    assert evaluation == {
        "step": 3,
        "epoch": 0.75,
        "eval/loss": 2.0,
        "eval/perplexity": pytest.approx(math.e**2),
        "eval/trained_tokens": 50,
    }


def test_the_last_step_is_evaluated_and_saved_once() -> None:
    world = World(validation_losses=[3.0, 2.0])
    world.run(replace(PLAN, max_steps=6))
    assert saves(world.journal) == [3, 6]
    assert world.journal[-3:] == [("evaluate", 6), ("log evaluation", 6), ("save", 6)]


def test_without_validation_data_it_only_saves() -> None:
    world = World()
    state = world.run(replace(PLAN, eval_first=True))
    assert {kind for kind, _ in world.journal} == {"step", "log step", "save"}
    assert saves(world.journal) == [3, 6, 7]
    assert state.evaluations == []


def test_eval_first() -> None:
    world = World(validation_losses=[4.0, 3.0, 2.0, 1.0])
    state = world.run(replace(PLAN, eval_first=True))
    assert world.journal[:3] == [("evaluate", 0), ("log evaluation", 0), ("step", 0)]
    assert saves(world.journal) == [3, 6, 7]
    assert state.evaluations[0].step == 0
    assert (world.records[0]["epoch"], world.records[0]["eval/loss"]) == (0.0, 4.0)


def test_eval_first_is_not_repeated_by_a_resumed_run() -> None:
    plan = replace(PLAN, eval_first=True)
    world = World(validation_losses=[4.0, 3.0, 2.0, 1.0])
    world.run(plan)
    resumed = World(validation_losses=[2.0, 1.0])
    resumed.run(plan, world.saved[0])
    assert resumed.journal[0] == ("step", 3)


def test_early_stopping() -> None:
    """It ends after the evaluation that decides, whose model is saved."""
    plan = replace(PLAN, max_steps=100, early_stopping=EarlyStopping(patience=2))
    world = World(validation_losses=[3.0, 2.0, 2.5, 2.0, 1.0])
    state = world.run(plan)
    assert state.step == 12
    assert world.journal[-3:] == [("evaluate", 12), ("log evaluation", 12), ("save", 12)]
    best = state.best_evaluation
    assert best is not None and best.loss == 2.0


def test_early_stopping_asks_for_more_than_min_delta() -> None:
    plan = replace(PLAN, max_steps=100, early_stopping=EarlyStopping(patience=1, min_delta=0.5))
    assert World(validation_losses=[3.0, 2.0, 1.5, 0.0]).run(plan).step == 9


def test_a_diverged_run_goes_on_to_its_end_or_to_early_stopping() -> None:
    world = World(validation_losses=[2.0, math.nan, math.inf])
    state = world.run(PLAN)
    assert state.step == 7
    evaluations = [record for record in world.records if "eval/loss" in record]
    assert str([record["eval/loss"] for record in evaluations]) == "[2.0, nan, inf]"
    assert [record["step"] for record in evaluations] == saves(world.journal) == [3, 6, 7]
    stopped = World(validation_losses=[2.0, math.nan, math.nan, math.nan])
    assert stopped.run(replace(PLAN, max_steps=100, early_stopping=EarlyStopping(patience=2))).step == 9


@pytest.mark.parametrize("eval_first", [False, True])
def test_a_finished_run_does_nothing(eval_first: bool) -> None:
    plan = replace(PLAN, eval_first=eval_first)
    world = World(validation_losses=[4.0, 3.0, 2.0, 1.0])
    state = world.run(plan)
    again = World(validation_losses=[1.0])
    assert again.run(plan, world.saved[-1]) == state
    assert again.journal == []


def test_a_run_that_stopped_early_does_not_go_on() -> None:
    plan = replace(PLAN, max_steps=100, early_stopping=EarlyStopping(patience=1))
    world = World(validation_losses=[1.0, 2.0])
    world.run(plan)
    again = World(validation_losses=[1.0])
    again.run(plan, world.saved[-1])
    assert again.journal == []


@given(
    max_steps=st.integers(1, 12),
    interval=st.integers(1, 6),
    eval_first=st.booleans(),
    patience=st.none() | st.integers(1, 3),
    losses=st.lists(st.floats(0.1, 9.0), min_size=13, max_size=13),
)
@settings(max_examples=50, deadline=None)
def test_a_resumed_run_does_exactly_what_is_left(
    max_steps: int, interval: int, eval_first: bool, patience: int | None, losses: list[float]
) -> None:
    """From each of the checkpoints of a run: batches, learning rates, random numbers and decisions."""
    plan = LoopPlan(
        max_steps=max_steps,
        steps_per_epoch=5,
        evaluation_interval_steps=interval,
        eval_first=eval_first,
        early_stopping=None if patience is None else EarlyStopping(patience=patience),
        seed=3,
    )
    whole = World(validation_losses=losses)
    final = whole.run(plan)
    assert steps(whole.journal) == list(range(final.step))
    assert saves(whole.journal) == [s for s in range(1, final.step + 1) if s % interval == 0 or s == max_steps]
    for number, saved in enumerate(whole.saved, start=1):
        rest = World(validation_losses=losses[number + eval_first :])
        assert rest.run(plan, saved.model_copy(deep=True)) == final
        assert steps(rest.journal) == steps(whole.journal)[saved.step :]
        assert saves(rest.journal) == saves(whole.journal)[number:]
        assert rest.learning_rates == whole.learning_rates[saved.step :]
        assert rest.random_numbers == whole.random_numbers[saved.step :]


def test_learning_rates_are_those_of_steps_counted_from_1() -> None:
    world = World()
    world.run(PLAN)
    assert world.learning_rates == [learning_rate(step) for step in range(1, 8)]
    assert [record["train/lr"] for record in world.records] == world.learning_rates


def test_random_numbers_follow_from_seed_step_and_rank() -> None:
    """Different in every step and on every rank, and not moved by what was drawn in between."""
    drawn = {}
    for seed in (0, 1, 2**32 - 1):
        for step in (0, 1, 2, 1000):
            for rank in (0, 1, 7):
                torch.rand(seed % 5 + step % 3)
                seed_step(seed, step, rank)
                drawn[seed, step, rank] = torch.rand(1).item()
    assert len(set(drawn.values())) == len(drawn)
    seed_step(1, 2, 7)
    assert torch.rand(1).item() == drawn[1, 2, 7]


def test_ranks_draw_their_own_numbers() -> None:
    worlds = [World(rank=rank) for rank in range(2)]
    for world in worlds:
        world.run(PLAN)
    numbers = [number for world in worlds for number in world.random_numbers]
    assert len(set(numbers)) == 2 * PLAN.max_steps


def test_a_save_that_is_asked_for_comes_after_the_step_under_way() -> None:
    world = World(validation_losses=[3.0, 2.0, 1.0], requests={2: Request(num_saves=1), 5: Request(num_saves=3)})
    final = world.run(PLAN)
    assert saves(world.journal) == [2, 3, 5, 6, 7]
    assert final == World(validation_losses=[3.0, 2.0, 1.0]).run(PLAN)
    assert [saved.is_evaluated() for saved in world.saved] == [False, True, False, True, True]


def test_a_save_that_is_asked_for_does_not_wait_for_the_evaluation_that_is_due() -> None:
    world = World(validation_losses=[3.0, 2.0, 1.0], requests={3: Request(num_saves=1)})
    world.run(PLAN)
    after_step = world.journal[world.journal.index(("log step", 3)) + 1 :]
    assert after_step[:4] == [("save", 3), ("evaluate", 3), ("log evaluation", 3), ("save", 3)]
    assert World(requests={3: Request(num_saves=1)}).run(PLAN).step == 7
    without_validation = World(requests={3: Request(num_saves=1)})
    without_validation.run(PLAN)
    assert saves(without_validation.journal) == [3, 6, 7]


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(stop_at: int) -> None:
    """Also where it stops at a step that is evaluated: that is then made up for."""
    losses = [3.0, 2.0, 1.0]
    whole = World(validation_losses=losses)
    final = whole.run(PLAN)
    first = World(validation_losses=losses, requests={stop_at: Request(stop=True)})
    assert first.run(PLAN).step == stop_at
    assert first.journal[-1] == ("save", stop_at)
    assert first.is_finished
    rest = World(validation_losses=losses[len(first.saved[-1].evaluations) :])
    assert rest.run(PLAN, first.saved[-1]) == final
    assert steps(first.journal) + steps(rest.journal) == steps(whole.journal)
    evaluated = [step for world in (first, rest) for kind, step in world.journal if kind == "log evaluation"]
    assert evaluated == [3, 6, 7]
    assert final == rest.saved[-1]


def test_what_stops_an_upload_ends_the_run_after_the_next_step() -> None:
    world = World(upload_error_at_step=5)
    with pytest.raises(StorageError, match="the bucket is gone"):
        world.run(PLAN)
    assert steps(world.journal)[-1] == 4


def test_whoever_watches_is_told_where_the_training_is() -> None:
    world = World(validation_losses=[1.0])
    world.run(replace(PLAN, max_steps=2))
    assert world.phases == [
        *[("reading a batch", 1), ("forward and backward", 1), ("reading a batch", 2), ("forward and backward", 2)],
        ("evaluating", 2),
    ]


@given(st.integers(0, 10**6), st.booleans())
def test_a_request_survives_as_a_number(num_saves: int, stop: bool) -> None:
    assert Request.from_notice(Request(num_saves, stop).notice) == Request(num_saves, stop)

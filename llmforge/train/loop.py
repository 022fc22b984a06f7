"""The training loop: step, log, evaluate, save.

Everything it touches is passed in; it knows nothing of Ray, YAML, S3 or DeepSpeed. Tasks differ by their batches and
loss function, never by another loop.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from llmforge.config.operations import StepOperations
from llmforge.config.training import EarlyStopping
from llmforge.metrics.loggers import Logger
from llmforge.metrics.meters import StepMeter, StepSample, perplexity
from llmforge.train.batches import StepBatches
from llmforge.train.engine import StepResult, TrainingEngine
from llmforge.train.evaluate import EvaluationResult
from llmforge.train.requests import Request
from llmforge.train.state import Evaluation, TrainerState


@dataclass(frozen=True)
class LoopPlan:
    """When what happens."""

    max_steps: int
    steps_per_epoch: int
    evaluation_interval_steps: int
    """Evaluate and save every so many steps, and after the last."""
    eval_first: bool
    early_stopping: EarlyStopping | None
    seed: int
    best_by: str | None = None
    """The measure of an evaluation that says which one is best, higher is better; None: its loss."""

    def evaluation_due(self, state: TrainerState) -> bool:
        """Whether the weights as they stand are to be evaluated."""
        due = self.eval_first if state.step == 0 else self.save_due(state.step)
        return due and not state.is_evaluated()

    def save_due(self, step: int) -> bool:
        """Whether there is to be a checkpoint of this step."""
        return step > 0 and (step % self.evaluation_interval_steps == 0 or step >= self.max_steps)

    def is_finished(self, state: TrainerState) -> bool:
        """Whether all steps are done, or validation has stopped improving."""
        stopping = self.early_stopping
        stopped = stopping is not None and state.has_stopped_improving(stopping.patience, stopping.min_delta)
        return stopped or state.step >= self.max_steps


class Batches(Protocol):
    """Gives this rank what it computes in a step."""

    def step(self, index: int) -> StepBatches:
        """The batches of step `index`, counted from 0 over the whole run."""


class Checkpoints(Protocol):
    """Saves the run; every rank calls every method, `save` after the same steps."""

    def save(self, state: TrainerState) -> None:
        """Take a checkpoint of this moment; the rest of the work may go on beside the training."""

    def check(self) -> None:
        """Raise what has stopped a save that was begun earlier."""

    def finish(self) -> None:
        """Wait until all that was saved is there."""


class Supervision(Protocol):
    """The way to whoever watches over the run."""

    @property
    def request(self) -> Request:
        """What is asked of the run, as far as it is known on this rank."""

    def enter(self, phase: str, step: int, *, is_watched: bool = True) -> None:
        """Tell where the training is. Not watched is what may take any time, or ends by a deadline of its own."""


@dataclass(frozen=True)
class LoopParts:
    """What the loop composes; all of it works on this rank."""

    engine: TrainingEngine
    batches: Batches
    learning_rate: Callable[[int], float]
    """Step, counted from 1, to learning rate."""
    evaluate: Callable[[], EvaluationResult] | None
    """None without validation data."""
    checkpoints: Checkpoints
    supervision: Supervision
    logger: Logger
    meter: StepMeter
    operations: StepOperations
    """Of the model, to tell how much of the devices is used."""
    answer_prompts: Callable[[int], None] | None = None
    """Answers the job's prompts behind an evaluation, of which it is told the step. None without prompts."""


def train(parts: LoopParts, state: TrainerState, plan: LoopPlan) -> None:
    """Take optimizer steps until the plan is finished or a stop is asked for; `state` moves along, and may come from a
    checkpoint.
    """
    request = Request()
    saved_step = state.step
    while True:
        if parts.evaluate is not None and plan.evaluation_due(state):
            _evaluate(parts, parts.evaluate, state, plan)
            saved_step = 0
        if plan.save_due(state.step) and saved_step != state.step:
            _save(parts, state, plan)
            saved_step = state.step
        if plan.is_finished(state):
            break
        result = _step(parts, state, plan)
        parts.checkpoints.check()
        asked, request = request, Request.from_notice(result.notice)
        if request != asked:
            _save(parts, state, plan)
            saved_step = state.step
            if request.stop:
                break
    parts.checkpoints.finish()


def _step(parts: LoopParts, state: TrainerState, plan: LoopPlan) -> StepResult:
    started = time.perf_counter()
    parts.supervision.enter("reading a batch", state.step + 1)
    batches = parts.batches.step(state.step)
    data_seconds = time.perf_counter() - started
    parts.supervision.enter("forward and backward", state.step + 1)
    seed_step(plan.seed, state.step, parts.engine.rank)
    learning_rate = parts.learning_rate(state.step + 1)
    result = parts.engine.step(batches, learning_rate, parts.supervision.request.notice)
    state.step += 1
    state.seen_trained_tokens += result.num_trained_tokens
    parts.meter.add(_sample(result, parts.operations, data_seconds, time.perf_counter() - started))
    parts.logger.log(_record(result, state, plan, parts.meter), state.step)
    return result


def _sample(result: StepResult, operations: StepOperations, data_seconds: float, seconds: float) -> StepSample:
    needed = operations.of_step(result.num_tokens, result.num_trained_tokens, result.num_token_pairs)
    return StepSample(
        num_tokens=result.num_tokens,
        num_trained_tokens=result.num_trained_tokens,
        num_positions=result.num_positions,
        seconds=seconds,
        part_seconds={"data": data_seconds, **result.part_seconds},
        operations=needed.operations,
        operations_6n=needed.operations_6n,
        peak_memory_bytes=result.peak_memory_bytes,
    )


def _save(parts: LoopParts, state: TrainerState, plan: LoopPlan) -> None:
    started = time.perf_counter()
    parts.checkpoints.save(state)
    record = {"epoch": state.step / plan.steps_per_epoch, "save/seconds": time.perf_counter() - started}
    parts.logger.log(record, state.step)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step (dropout) a pure function of (seed, step, rank).

    A resumed run then draws the numbers that the uninterrupted one would have drawn, with no generator state to save.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def _evaluate(parts: LoopParts, evaluate: Callable[[], EvaluationResult], state: TrainerState, plan: LoopPlan) -> None:
    parts.supervision.enter("evaluating", state.step)
    started = time.perf_counter()
    result = evaluate()
    score = None if plan.best_by is None else result.measures.get(plan.best_by, math.nan)
    state.evaluations.append(Evaluation(step=state.step, loss=result.loss, score=score))
    measures = {f"eval/{name}": value for name, value in result.measures.items()}
    record = {
        "epoch": state.step / plan.steps_per_epoch,
        "eval/loss": result.loss,
        **(measures or {"eval/perplexity": perplexity(result.loss)}),
        "eval/trained_tokens": result.num_trained_tokens,
        "eval/seconds": time.perf_counter() - started,
    }
    parts.logger.log(record, state.step)
    if parts.answer_prompts is not None:
        parts.supervision.enter("answering prompts", state.step)
        started = time.perf_counter()
        parts.answer_prompts(state.step)
        seconds = time.perf_counter() - started
        parts.logger.log({"epoch": state.step / plan.steps_per_epoch, "eval/samples_seconds": seconds}, state.step)


def _record(result: StepResult, state: TrainerState, plan: LoopPlan, meter: StepMeter) -> dict[str, float]:
    return {
        "epoch": state.step / plan.steps_per_epoch,
        "train/loss": result.loss,
        "train/lr": result.learning_rate,
        "train/grad_norm": result.grad_norm,
        **{f"train/{name}": value for name, value in result.measures.items()},
        **meter.read(),
    }

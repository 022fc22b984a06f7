"""The training loop: step, log, evaluate, save.

Everything it touches is passed in; it knows nothing of Ray, YAML, S3 or DeepSpeed. Tasks differ by their batches and
loss function, never by another loop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from llmforge.config.training import EarlyStopping
from llmforge.metrics.loggers import Logger
from llmforge.metrics.meters import StepMeter, StepSample, perplexity
from llmforge.train.batches import TrainingBatches
from llmforge.train.engine import StepResult, TrainingEngine
from llmforge.train.evaluate import EvaluationResult
from llmforge.train.losses import LossFunction
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

    def evaluation_due(self, step: int) -> bool:
        """Whether the run is evaluated and saved after this step."""
        return step % self.evaluation_interval_steps == 0 or step >= self.max_steps

    def is_finished(self, state: TrainerState) -> bool:
        """Whether all steps are done, or validation has stopped improving."""
        stopping = self.early_stopping
        stopped = stopping is not None and state.has_stopped_improving(stopping.patience, stopping.min_delta)
        return stopped or state.step >= self.max_steps


@dataclass(frozen=True)
class LoopParts:
    """What the loop composes; all of it works on this rank."""

    engine: TrainingEngine
    batches: TrainingBatches
    loss_function: LossFunction
    learning_rate: Callable[[int], float]
    """Step, counted from 1, to learning rate."""
    evaluate: Callable[[], EvaluationResult] | None
    """None without validation data."""
    save: Callable[[TrainerState], None]
    logger: Logger
    peak_memory_bytes: Callable[[], int]


def train(parts: LoopParts, state: TrainerState, plan: LoopPlan) -> None:
    """Take optimizer steps until the plan is finished; `state` moves along, and may come from a checkpoint."""
    meter = StepMeter()
    if plan.eval_first and not state.evaluations:
        _evaluate(parts, state, plan)
    while not plan.is_finished(state):
        started = time.perf_counter()
        seed_step(plan.seed, state.step, parts.engine.rank)
        learning_rate = parts.learning_rate(state.step + 1)
        result = parts.engine.step(parts.batches.step(state.step), parts.loss_function, learning_rate)
        state.step += 1
        state.seen_trained_tokens += result.num_trained_tokens
        meter.add(StepSample(result.num_tokens, result.num_trained_tokens, time.perf_counter() - started))
        parts.logger.log(_record(result, state, plan, meter, parts.peak_memory_bytes()), state.step)
        if plan.evaluation_due(state.step):
            _evaluate(parts, state, plan)
            parts.save(state)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step (dropout) a pure function of (seed, step, rank).

    A resumed run then draws the numbers that the uninterrupted one would have drawn, with no generator state to save.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def _evaluate(parts: LoopParts, state: TrainerState, plan: LoopPlan) -> None:
    if parts.evaluate is None:
        return
    started = time.perf_counter()
    result = parts.evaluate()
    state.evaluations.append(Evaluation(step=state.step, loss=result.loss))
    record = {
        "epoch": state.step / plan.steps_per_epoch,
        "eval/loss": result.loss,
        "eval/perplexity": perplexity(result.loss),
        "eval/trained_tokens": result.num_trained_tokens,
        "eval/seconds": time.perf_counter() - started,
    }
    parts.logger.log(record, state.step)


def _record(
    result: StepResult, state: TrainerState, plan: LoopPlan, meter: StepMeter, peak_memory_bytes: int
) -> dict[str, float]:
    return {
        "epoch": state.step / plan.steps_per_epoch,
        "train/loss": result.loss,
        "train/lr": result.learning_rate,
        "train/grad_norm": result.grad_norm,
        **meter.read(peak_memory_bytes),
    }

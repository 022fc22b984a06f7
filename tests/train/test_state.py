"""What is remembered of a run: it comes back as it was, and it tells the best evaluation and when to stop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmforge.train.optimizer_state import OptimizerState
from llmforge.train.state import Evaluation, TrainerState, load_optimizer_state, save_optimizer_state

NAN, INF = math.nan, math.inf


def state_with(losses: list[float]) -> TrainerState:
    """One evaluation every 10 steps."""
    evaluations = [Evaluation(step=10 * number, loss=loss) for number, loss in enumerate(losses, start=1)]
    return TrainerState(step=10 * len(losses), evaluations=evaluations)


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def test_round_trip() -> None:
    state = TrainerState(
        step=12,
        seen_trained_tokens=2**40,
        evaluations=[Evaluation(step=0, loss=2.5), Evaluation(step=12, loss=0.1 + 0.2)],
        num_updates=11.0,
        loss_scaler={"cur_scale": 65536.0, "last_overflow_iter": -1.0},
    )
    assert TrainerState.model_validate_json(state.model_dump_json(indent=2)) == state
    assert TrainerState.model_validate_json(TrainerState().model_dump_json()) == TrainerState()


@given(st.lists(st.floats(), max_size=5))
@settings(deadline=None)
def test_round_trip_of_a_diverged_run(losses: list[float]) -> None:
    """In JSON that any program can read."""
    text = state_with(losses).model_dump_json()
    json.loads(text, parse_constant=refuse_constant)
    restored = TrainerState.model_validate_json(text)
    assert [repr(evaluation.loss) for evaluation in restored.evaluations] == [repr(loss) for loss in losses]


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="scheduler"):
        TrainerState.model_validate_json('{"step": 3, "scheduler": {}}')


def test_states_share_nothing() -> None:
    one = TrainerState()
    one.evaluations.append(Evaluation(step=0, loss=1.0))
    assert TrainerState().evaluations == []


@pytest.mark.parametrize(
    ("losses", "best_step"),
    [
        ([], None),
        ([2.0], 10),
        ([2.0, 1.0, 1.5], 20),
        ([2.0, 1.0, 1.0], 30),  # as `checkpoint.store.ranked`, which decides what is kept
        ([NAN, 2.0, 3.0], 20),
        ([2.0, NAN], 10),
        ([INF, 2.0], 20),
        ([NAN, NAN], None),
        ([INF], None),
    ],
)
def test_best_evaluation(losses: list[float], best_step: int | None) -> None:
    best = state_with(losses).best_evaluation
    assert (best.step if best else None) == best_step


def test_another_measure_may_say_which_is_best() -> None:
    """Higher is better; of a diverged model it says nothing."""
    state = TrainerState()
    for step, (loss, score) in enumerate([(3.0, 0.5), (1.0, 0.25), (2.0, 0.75), (NAN, 1.0)]):
        state.evaluations.append(Evaluation(step=step, loss=loss, score=score))
    assert state.best_evaluation is not None and state.best_evaluation.step == 2
    assert state.has_stopped_improving(1, 0.0)
    assert not state.has_stopped_improving(3, 0.1)
    assert state.has_stopped_improving(3, 0.25)


def test_is_evaluated() -> None:
    state = state_with([2.0, 1.0])
    assert state.is_evaluated()
    state.step += 1
    assert not state.is_evaluated()
    assert not TrainerState().is_evaluated()


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stopped"),
    [
        ([], 1, 0.0, False),
        ([2.0], 1, 0.0, False),
        ([2.0, 1.0], 1, 0.0, False),
        ([2.0, 2.0], 1, 0.0, True),  # equal is not better
        ([1.0, 2.0], 1, 0.0, True),
        ([1.0, 2.0], 2, 0.0, False),
        ([1.0, 2.0, 1.5], 2, 0.0, True),  # better than the last, not than the best
        ([1.0, 2.0, 0.5], 2, 0.0, False),
        ([1.0, 0.5, 2.0], 2, 0.0, False),
        ([2.0, 1.75], 1, 0.25, True),  # by exactly min_delta
        ([2.0, 1.5], 1, 0.25, False),
        ([2.0, 1.9, 1.8], 2, 0.25, True),
        ([1.0, NAN], 1, 0.0, True),  # diverged
        ([1.0, NAN, NAN], 2, 0.0, True),
        ([1.0, NAN, 0.5], 2, 0.0, False),  # recovered
        ([NAN, 3.0], 1, 0.0, False),  # a number at last
        ([NAN, NAN], 1, 0.0, True),
        ([INF, INF], 1, 0.0, True),
        ([INF, 700.0], 1, 0.5, False),
        ([1.0, INF], 1, 0.0, True),
    ],
)
def test_has_stopped_improving(losses: list[float], patience: int, min_delta: float, stopped: bool) -> None:
    assert state_with(losses).has_stopped_improving(patience, min_delta) is stopped


def evaluations_until_stop(losses: list[float], patience: int) -> int | None:
    """By the usual other way: count the evaluations in a row that were not the best so far."""
    best, num_without = INF, 0
    for number, loss in enumerate(losses, start=1):
        improved = loss < best
        best = loss if improved else best
        num_without = 0 if improved or number == 1 else num_without + 1
        if num_without == patience:
            return number
    return None


@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, NAN, INF]), max_size=12), st.integers(1, 4))
@settings(deadline=None)
def test_early_stopping_as_a_counter_would(losses: list[float], patience: int) -> None:
    ends = range(1, len(losses) + 1)
    first = next((end for end in ends if state_with(losses[:end]).has_stopped_improving(patience, 0.0)), None)
    assert first == evaluations_until_stop(losses, patience)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 12])
def test_optimizer_state_of_several_ranks(tmp_path: Path, num_ranks: int) -> None:
    """Ranks without a share write nothing; whoever reads gets all of it."""
    torch.manual_seed(0)
    tensors = {f"layer.{number}.weight|{key}": torch.randn(3, number + 1).T for number in range(5) for key in "mv"}
    names = list(tensors)
    for rank in range(num_ranks):
        share = {name: tensors[name] for name in names[rank::num_ranks]}
        save_optimizer_state(OptimizerState(share, 7.0, {}), tmp_path, rank)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == [f"optimizer/rank-{rank:05d}.safetensors" for rank in range(min(num_ranks, len(names)))]
    loaded = load_optimizer_state(tmp_path, TrainerState(num_updates=7.0, loss_scaler={"cur_scale": 2.0}))
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())
    assert (loaded.num_updates, loaded.loss_scaler) == (7.0, {"cur_scale": 2.0})


def test_a_checkpoint_without_optimizer_state(tmp_path: Path) -> None:
    assert load_optimizer_state(tmp_path, TrainerState()).tensors == {}

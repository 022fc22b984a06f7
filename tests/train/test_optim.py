"""Learning rates against those of transformers, and what the optimizer decays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from llmforge.config.training import Adafactor, AdamW, AdamW8bit, OptimizerConfig, Sgd
from llmforge.train.optim import Schedule, build_optimizer, scheduled_learning_rate
from tests.train.ranks import tiny_model

SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant")
PEAK = 3e-4


def rates(schedule: Schedule, num_warmup_steps: int, max_steps: int) -> list[float]:
    """The learning rates of steps 1, 2, ..."""
    rate = partial(
        scheduled_learning_rate, peak=PEAK, schedule=schedule, num_warmup_steps=num_warmup_steps, max_steps=max_steps
    )
    return [rate(step) for step in range(1, max_steps + 1)]


def reference(schedule: Schedule, num_warmup_steps: int, max_steps: int) -> Callable[[int], float]:
    """The schedule of transformers. Its trainer takes step s, counted from 1, with the rate of s - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = {
        "cosine": partial(get_cosine_schedule_with_warmup, num_training_steps=max_steps),
        "linear": partial(get_linear_schedule_with_warmup, num_training_steps=max_steps),
        "constant": get_constant_schedule_with_warmup,
    }[schedule](optimizer, num_warmup_steps=num_warmup_steps)
    factor = scheduler.lr_lambdas[0]
    return lambda index: PEAK * float(factor(index))


@given(schedule=st.sampled_from(SCHEDULES), num_warmup_steps=st.integers(0, 60), max_steps=st.integers(1, 50))
@settings(deadline=None)
def test_against_transformers(schedule: Schedule, num_warmup_steps: int, max_steps: int) -> None:
    """Equal after the warm-up. In it ours is one step ahead: theirs wastes the first step on a rate of 0.

    So ours reaches the peak with the last step of the warm-up, and stays there for the step after it.
    """
    theirs = reference(schedule, num_warmup_steps, max_steps)
    for step, rate in enumerate(rates(schedule, num_warmup_steps, max_steps), start=1):
        if step == num_warmup_steps:
            assert rate == PEAK
        else:
            index = step if step < num_warmup_steps else step - 1
            assert rate == pytest.approx(theirs(index), rel=1e-9, abs=1e-18)


@given(schedule=st.sampled_from(SCHEDULES), num_warmup_steps=st.integers(0, 60), max_steps=st.integers(1, 50))
@settings(deadline=None)
def test_rises_and_falls_and_wastes_no_step(schedule: Schedule, num_warmup_steps: int, max_steps: int) -> None:
    values = rates(schedule, num_warmup_steps, max_steps)
    rising, falling = values[:num_warmup_steps], values[num_warmup_steps:]
    assert all(0 < value <= PEAK for value in values)
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == PEAK


def test_exact_values() -> None:
    assert rates("linear", 2, 6) == pytest.approx([PEAK / 2, PEAK, PEAK, PEAK * 3 / 4, PEAK / 2, PEAK / 4])
    assert rates("cosine", 0, 4) == pytest.approx([PEAK, PEAK * (2 + 2**0.5) / 4, PEAK / 2, PEAK * (2 - 2**0.5) / 4])
    assert rates("constant", 4, 6) == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK, PEAK])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_ends_in_its_warm_up(schedule: Schedule) -> None:
    assert rates(schedule, 10, 3) == pytest.approx([PEAK / 10, PEAK / 5, PEAK * 3 / 10])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_zero_comes_right_after_the_last_step(schedule: Schedule) -> None:
    after = scheduled_learning_rate(21, peak=PEAK, schedule=schedule, num_warmup_steps=5, max_steps=20)
    assert after == pytest.approx(0, abs=1e-18)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_trained_weight_once_and_only_matrices_decay(method: str) -> None:
    model = tiny_model(method)
    config = AdamW(weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    groups = build_optimizer(model.parameters(), config, PEAK).param_groups
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert len(groups) == (2 if method == "full" else 1)  # an adapter has matrices only
    for group in groups:
        assert {parameter.dim() >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
        assert (group["lr"], group["betas"], group["eps"]) == (PEAK, (0.8, 0.95), 1e-6)


def test_decay_in_numbers() -> None:
    """AdamW with a gradient of zero does nothing but w <- w (1 - learning rate * decay)."""
    matrix, bias = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([matrix, bias], AdamW(weight_decay=0.5), learning_rate=0.1)
    for parameter in (matrix, bias):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(matrix.data, torch.full((2, 3), 0.95))
    assert torch.equal(bias.data, torch.ones(3))


TYPES: tuple[OptimizerConfig, ...] = (
    AdamW(),
    AdamW8bit(type="adamw_8bit"),
    Adafactor(type="adafactor"),
    Sgd(type="sgd"),
    Sgd(type="sgd", momentum=0.9, nesterov=True),
)


@pytest.mark.parametrize("config", TYPES, ids=str)
def test_only_matrices_decay_whatever_the_type(config: OptimizerConfig) -> None:
    """A gradient of zero moves what decays, by learning rate x decay, and nothing else."""
    matrix, bias = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))
    decaying = config.model_copy(update={"weight_decay": 0.5})
    optimizer = build_optimizer([matrix, bias], decaying, learning_rate=0.1)
    for parameter in (matrix, bias):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    nesterov = 1.9 if isinstance(config, Sgd) and config.nesterov else 1.0  # the decay is a part of its gradient
    torch.testing.assert_close(matrix.data, torch.full((2, 3), 1 - 0.05 * nesterov))
    assert torch.equal(bias.data, torch.ones(3))


@pytest.mark.parametrize("fused", [True, False])
def test_fused(fused: bool) -> None:
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], AdamW(fused=fused), PEAK)
    assert optimizer.defaults["fused"] is fused


def first_steps(config: OptimizerConfig, num_steps: int = 2) -> torch.Tensor:
    """A matrix of 8,192 ones after updates with gradients of alternating sign and growing size."""
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = build_optimizer([weight], config, learning_rate=0.01)
    gradient = torch.linspace(0.5, 1.0, weight.numel()).view_as(weight)
    gradient[:, ::2] *= -1
    for _ in range(num_steps):
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def test_adamw_in_8_bits_is_adamw_but_for_rounding() -> None:
    eight, full = first_steps(AdamW8bit(type="adamw_8bit")), first_steps(AdamW())
    assert not torch.equal(eight, full)
    torch.testing.assert_close(eight, full, rtol=0, atol=1e-3)  # each of two updates is 1e-2


def test_state_in_8_bits_takes_two_bytes() -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = build_optimizer([weight], AdamW8bit(type="adamw_8bit", betas=(0.8, 0.95), eps=1e-6), PEAK)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    assert {state[key].dtype for key in ("state1", "state2")} == {torch.uint8}
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.95), 1e-6)


def test_the_rate_of_adafactor_is_not_relative_to_the_weights() -> None:
    """Where every gradient is as large, the first update is the learning rate, as with Adam."""
    weight = torch.nn.Parameter(torch.full((4, 4), 100.0))
    optimizer = build_optimizer([weight], Adafactor(type="adafactor"), learning_rate=0.01)
    weight.grad = torch.full((4, 4), 3.0)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((4, 4), 99.99))


def test_adafactor_keeps_rows_and_columns() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = build_optimizer([weight], Adafactor(type="adafactor", decay_rate=-0.5, clip_threshold=2.0), PEAK)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    shapes = {key: value.shape for key, value in optimizer.state[weight].items() if "exp_avg" in key}
    assert shapes == {"exp_avg_sq_row": (3,), "exp_avg_sq_col": (5,)}
    assert (optimizer.defaults["decay_rate"], optimizer.defaults["clip_threshold"]) == (-0.5, 2.0)


def test_sgd_with_momentum_in_numbers() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([weight], Sgd(type="sgd", momentum=0.5), learning_rate=0.1)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 1 - 0.1 - 0.15))

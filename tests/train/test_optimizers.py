"""Every optimizer and every offload in real ranks with DeepSpeed: rehearsed without a trace, and resumed exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmforge.config.training import Adafactor, AdamW8bit, Sgd
from tests.train.ranks import Case, Offloaded, Outcome, Precision, run_cases

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
EIGHT_BIT = AdamW8bit(type="adamw_8bit", weight_decay=0.1)
ADAFACTOR = Adafactor(type="adafactor", weight_decay=0.1)
PLAIN = Sgd(type="sgd")
MOMENTUM = Sgd(type="sgd", momentum=0.9, nesterov=True, weight_decay=0.1)
WIDE = 96
"""Hidden size at which a rank's share is large enough for 8 bits."""
OFFLOADS: tuple[tuple[int, tuple[Offloaded, ...]], ...] = (
    (2, ("offload_optimizer",)),
    (3, ("offload_optimizer",)),
    (3, ("offload_optimizer", "offload_param")),
)

OFFLOADED = [
    Case(num_workers=2, zero_stage=stage, precision=precision, offload=offload)
    for stage, offload in OFFLOADS
    for precision in PRECISIONS
]
OTHERS = [
    Case(num_workers=2, zero_stage=0, optimizer=ADAFACTOR),
    Case(num_workers=2, zero_stage=0, optimizer=EIGHT_BIT, hidden_size=WIDE),
    *(
        Case(num_workers=2, zero_stage=stage, precision="bf16", optimizer=EIGHT_BIT, hidden_size=WIDE)
        for stage in (1, 2, 3)
    ),
    Case(num_workers=2, zero_stage=3, optimizer=EIGHT_BIT, hidden_size=WIDE),
    Case(num_workers=2, zero_stage=0, optimizer=PLAIN),
    Case(num_workers=2, zero_stage=3, precision="bf16", optimizer=PLAIN),
    Case(num_workers=2, zero_stage=1, precision="bf16", optimizer=MOMENTUM),
    Case(num_workers=2, zero_stage=3, optimizer=MOMENTUM),
]
UNBROKEN = [*OFFLOADED, *OTHERS]
WRITTEN_BY_TWO = [
    Case(num_workers=2, zero_stage=stage, num_steps=2, optimizer=EIGHT_BIT, hidden_size=WIDE) for stage in (0, 2, 3)
]
CONTINUED_BY_ONE = [
    Case(zero_stage=case.zero_stage, num_steps=4, resume_from=case, optimizer=EIGHT_BIT, hidden_size=WIDE)
    for case in WRITTEN_BY_TWO
]
UNBROKEN_BY_ONE = Case(num_steps=4, optimizer=EIGHT_BIT, hidden_size=WIDE)
IN_FULL = Case(num_steps=4, hidden_size=WIDE)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Outcome]:
    resumed = [replace(case, rehearsed=True, resume_at=2) for case in UNBROKEN]
    plain = list({replace(case, offload=()) for case in OFFLOADED})
    cases = [*UNBROKEN, *resumed, *plain, *WRITTEN_BY_TWO, *CONTINUED_BY_ONE, UNBROKEN_BY_ONE, IN_FULL]
    folder: Path = tmp_path_factory.mktemp("ranks")
    return run_cases(cases, folder)


def are_identical(one: Outcome, other: Outcome) -> bool:
    numbers = one.losses == other.losses and one.grad_norms == other.grad_norms
    return numbers and all(torch.equal(other.weights[name], weight) for name, weight in one.weights.items())


def largest_difference(one: Outcome, other: Outcome) -> float:
    return max((one.weights[name] - other.weights[name]).abs().max().item() for name in one.weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNBROKEN, ids=str)
def test_a_rehearsal_leaves_no_trace_and_a_resumed_run_is_bit_identical(
    case: Case, outcomes: dict[Case, Outcome]
) -> None:
    assert are_identical(outcomes[replace(case, rehearsed=True, resume_at=2)], outcomes[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", OFFLOADED, ids=str)
def test_offloading_computes_the_same(case: Case, outcomes: dict[Case, Outcome]) -> None:
    plain = outcomes[replace(case, offload=())]
    assert outcomes[case].losses == pytest.approx(plain.losses, rel=1e-6 if case.precision == "fp32" else 1e-3)
    if case.precision == "fp32":
        assert largest_difference(outcomes[case], plain) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTINUED_BY_ONE, ids=str)
def test_8_bits_on_another_number_of_workers(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """Rounded once more, so close to the unbroken curve and not on it."""
    assert outcomes[case].losses == pytest.approx(outcomes[UNBROKEN_BY_ONE].losses[2:], rel=1e-3)


@pytest.mark.slow
def test_8_bits_follow_adamw(outcomes: dict[Case, Outcome]) -> None:
    assert outcomes[UNBROKEN_BY_ONE].losses == pytest.approx(outcomes[IN_FULL].losses, rel=1e-3)
    assert outcomes[UNBROKEN_BY_ONE].losses[3] != outcomes[IN_FULL].losses[3]

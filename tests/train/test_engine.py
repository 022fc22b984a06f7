"""The engine in real ranks with real DeepSpeed: splits do not matter, rehearsals leave no trace, resuming is exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.ranks import Case, Method, Outcome, Precision, run_cases

METHODS: tuple[Method, ...] = ("full", "lora")
HEADS: tuple[Method, ...] = ("tied", "lora on the head")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
STAGES = (0, 1, 2, 3)
CORPORA: tuple[tuple[Method, bool], ...] = (("full", True), ("full", False), ("lora", True))

SPLITS = [
    Case(num_workers=workers, micro_batch_size=micro, method=method, packed=packed)
    for method, packed in CORPORA
    for workers, micro in ((1, 1), (1, 3), (1, 4), (2, 1), (2, 3), (4, 1))
]
SHARDED = [
    Case(num_workers=2, zero_stage=stage, precision=precision, method=method)
    for stage in (1, 2, 3)
    for precision, method in zip(PRECISIONS, METHODS, strict=True)
]
OUTPUT_LAYERS = [Case(num_workers=2, zero_stage=stage, method=method) for method in HEADS for stage in (1, 2, 3)]
UNBROKEN = [
    Case(num_workers=2, zero_stage=stage, precision=precision, method=method, dropout=0.1, num_steps=4)
    for stage in STAGES
    for precision in PRECISIONS
    for method in METHODS
]
WRITTEN_BY_TWO = [Case(num_workers=2, zero_stage=stage, num_steps=2) for stage in STAGES]
CONTINUED_BY_ONE = [Case(num_steps=4, resume_from=case) for case in WRITTEN_BY_TWO]
UNBROKEN_BY_ONE = Case(num_steps=4)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Outcome]:
    resumed = [replace(case, rehearsed=True, resume_at=2) for case in UNBROKEN]
    alone = [Case(method=method) for method in HEADS]
    cases = [
        *SPLITS,
        *SHARDED,
        *OUTPUT_LAYERS,
        *alone,
        *UNBROKEN,
        *resumed,
        *WRITTEN_BY_TWO,
        *CONTINUED_BY_ONE,
        UNBROKEN_BY_ONE,
    ]
    folder: Path = tmp_path_factory.mktemp("ranks")
    return run_cases(cases, folder)


def largest_difference(one: Outcome, other: Outcome) -> float:
    return max((one.weights[name] - other.weights[name]).abs().max().item() for name in one.weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_the_split_of_a_global_batch_does_not_matter(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """1 worker x 4 accumulation = 1 x 1 with 4 sequences = 2 workers x 2 = 4 workers x 1."""
    expected = outcomes[Case(method=case.method, packed=case.packed)]
    assert outcomes[case].losses == pytest.approx(expected.losses, rel=1e-6)
    assert outcomes[case].grad_norms == pytest.approx(expected.grad_norms, rel=1e-5)
    assert outcomes[case].evaluation == pytest.approx(expected.evaluation, rel=1e-5)
    assert largest_difference(outcomes[case], expected) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", [*SHARDED, *OUTPUT_LAYERS], ids=str)
def test_every_zero_stage_computes_the_same(case: Case, outcomes: dict[Case, Outcome]) -> None:
    expected = outcomes[Case(method=case.method)]
    relative = 1e-6 if case.precision == "fp32" else 1e-3
    assert outcomes[case].losses == pytest.approx(expected.losses, rel=relative)
    if case.precision == "fp32":
        assert largest_difference(outcomes[case], expected) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", UNBROKEN, ids=str)
def test_a_resumed_run_is_bit_identical(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """Rehearsed, then saved, thrown away and restored after step 2, with dropout."""
    resumed = outcomes[replace(case, rehearsed=True, resume_at=2)]
    assert resumed.losses == outcomes[case].losses
    assert resumed.grad_norms == outcomes[case].grad_norms
    assert resumed.weights.keys() == outcomes[case].weights.keys()
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in outcomes[case].weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTINUED_BY_ONE, ids=str)
def test_another_number_of_workers_goes_on_with_the_same_curve(case: Case, outcomes: dict[Case, Outcome]) -> None:
    assert outcomes[case].losses == pytest.approx(outcomes[UNBROKEN_BY_ONE].losses[2:], rel=1e-6)
    assert largest_difference(outcomes[case], outcomes[UNBROKEN_BY_ONE]) < 2e-5


@pytest.mark.slow
def test_the_model_learns(outcomes: dict[Case, Outcome]) -> None:
    """A guard on the tests above, which two engines that do nothing would pass."""
    first = outcomes[SPLITS[0]]
    weights = outcomes[UNBROKEN_BY_ONE].weights
    assert all(norm > 0.1 for norm in first.grad_norms)
    assert any(not torch.equal(weights[name], first.weights[name]) for name in weights)

"""The formulas of operations, against numbers worked out by hand."""

from __future__ import annotations

from llmforge.config.operations import NeededOperations, StepOperations, StepTokens, Weights

MODEL = StepOperations(
    decoder=Weights(frozen=1000, trained=10),
    head=Weights(frozen=200),
    num_layers=3,
    attention_width=8,
    num_parameters=1300,
)
STEP = StepTokens(num_tokens=30, num_trained_tokens=7, num_token_pairs=10**2 + 20**2)


def test_a_step_of_an_adapter() -> None:
    layers = 30 * (4 * 1000 + 6 * 10)
    attention = 12 * 3 * 8 * (10**2 + 20**2) / 2
    assert MODEL.needed(STEP) == layers + 7 * 4 * 200 + attention


def test_layers_computed_again_take_another_forward_pass_and_the_output_layer_none() -> None:
    more = 30 * 2 * 1010 + 4 * 3 * 8 * (10**2 + 20**2) / 2
    assert MODEL.needed(STEP, num_forward_passes=2) == MODEL.needed(STEP) + more


def test_both_counts_of_a_step() -> None:
    assert MODEL.of_step(30, 7, 500) == NeededOperations(MODEL.needed(STEP), operations_6n=6 * 1300 * 30)

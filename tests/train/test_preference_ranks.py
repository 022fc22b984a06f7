"""Learning from pairs in real ranks with real DeepSpeed: the split does not matter, and resuming is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmforge.config.training import PreferenceTuningConfig
from tests.train.ranks import Case, Outcome, run_cases, tiny_model

FULL = Case(preference=PreferenceTuningConfig(loss="dpo", beta=0.1, reference="precomputed"))
ADAPTER_OFF = Case(preference=PreferenceTuningConfig(loss="dpo", beta=0.1, reference="adapter_off"), method="lora")
SIMPO = Case(preference=PreferenceTuningConfig(loss="simpo", beta=2.0, gamma=1.0), packed=False)
KTO = Case(preference=PreferenceTuningConfig(loss="kto", beta=0.1, desirable_weight=0.5, reference="precomputed"))
KTO_ADAPTER_OFF = Case(
    preference=PreferenceTuningConfig(loss="kto", beta=0.1, reference="adapter_off"), method="lora", packed=False
)
SPLITS = [
    replace(FULL, num_workers=2),
    replace(FULL, micro_batch_size=4, by_documents=False),
    replace(ADAPTER_OFF, num_workers=2, micro_batch_size=2),
    replace(ADAPTER_OFF, num_workers=2, method="lora on the head"),
    replace(SIMPO, num_workers=2),
    replace(SIMPO, micro_batch_size=4, by_documents=False),
    replace(KTO, num_workers=2),
    replace(KTO, micro_batch_size=4, by_documents=False),
    replace(KTO_ADAPTER_OFF, num_workers=2, micro_batch_size=2),
]
SHARDED = [
    *(replace(case, num_workers=2, zero_stage=stage) for case in (FULL, ADAPTER_OFF) for stage in (1, 2, 3)),
    *(replace(KTO, num_workers=2, zero_stage=stage) for stage in (1, 3)),
    replace(KTO_ADAPTER_OFF, num_workers=2, zero_stage=3),
]
UNBROKEN = [
    replace(FULL, num_workers=2, dropout=0.1, num_steps=4, precision="bf16", zero_stage=2),
    replace(ADAPTER_OFF, num_workers=2, dropout=0.1, num_steps=4, zero_stage=3),
    replace(KTO, num_workers=2, dropout=0.1, num_steps=4, zero_stage=2),
]


def alone(case: Case) -> Case:
    """The same training by one worker, in the plainest way."""
    return Case(preference=case.preference, method=case.method, packed=case.packed)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Outcome]:
    cases = [*SPLITS, *SHARDED, *UNBROKEN, *(replace(case, resume_at=2) for case in UNBROKEN)]
    return run_cases(list(dict.fromkeys([*cases, *map(alone, [*SPLITS, *SHARDED])])), tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*SPLITS, *SHARDED], ids=str)
def test_the_split_does_not_matter(case: Case, outcomes: dict[Case, Outcome]) -> None:
    found, expected = outcomes[case], outcomes[alone(case)]
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)
    assert found.evaluation == pytest.approx(expected.evaluation, rel=1e-5)
    for one, other in zip(found.measures, expected.measures, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert max((found.weights[name] - weight).abs().max().item() for name, weight in expected.weights.items()) < 5e-5


@pytest.mark.slow
def test_the_model_learns(outcomes: dict[Case, Outcome]) -> None:
    """A guard on the test above, which engines that do nothing would pass."""
    for case in map(alone, (FULL, ADAPTER_OFF, SIMPO, KTO, KTO_ADAPTER_OFF)):
        start = dict(tiny_model(case.method).named_parameters())
        assert all(norm > 0.01 for norm in outcomes[case].grad_norms)
        assert all(not torch.equal(start[name], weight) for name, weight in outcomes[case].weights.items())
    assert all(measures["kl"] > 1 for measures in outcomes[alone(KTO)].measures)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNBROKEN, ids=str)
def test_a_resumed_run_is_bit_identical(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """Saved, thrown away and restored after step 2, with dropout, which the reference has none of."""
    resumed = outcomes[replace(case, resume_at=2)]
    assert resumed.losses == outcomes[case].losses
    assert resumed.measures == outcomes[case].measures
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in outcomes[case].weights.items())

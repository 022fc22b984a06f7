"""The loss of rated answers: that of each alone, whatever shares a row with it, and that of another program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import peft
import pytest
import torch

from llmforge.config.training import PreferenceTuningConfig
from llmforge.dataset.shards import Sample
from llmforge.train.batches import EMPTY_SAMPLE, Batch, Layout, collate
from llmforge.train.preference import AnswerScorer, PreferenceLoss
from llmforge.train.rated_losses import RatedScores, rated_losses, rated_means, reference_point
from tests.dataset.samples import join_examples
from tests.train.answer_losses import Computed, answer_sum, assert_same, computed, conversation, with_attention
from tests.train.answers import RATED_ROWS, RatedRow, fixed_model

ONE_ROW = Layout(by_documents=True, rated=True)
LAYOUTS = {
    "one row": ONE_ROW,
    "a row for each sample": Layout(rated=True),
    "padded": Layout(rated=True, pad_to=60),
    "answers alone in one row": Layout(by_documents=True, rated=True, alone=True),
    "answers alone, padded": Layout(rated=True, alone=True, pad_to=24),
}
CONFIG = PreferenceTuningConfig(
    loss="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.75, reference="precomputed"
)
AHEAD, BEHIND = 0.4, 0.0
"""Models of which one finds the mismatched answers likelier than the other."""


@torch.no_grad()
def sums_of(phase: float) -> torch.Tensor:
    """Log-probabilities by the definition of the answers and the mismatched ones, by turns."""
    model = fixed_model(phase)
    found = [
        answer_sum(model, conversation(row.prompt, answer))
        for row in RATED_ROWS
        for answer in (row.answer, row.mismatched)
    ]
    return torch.stack(found)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return sums_of(BEHIND)


def sample_of(rows: Sequence[RatedRow], reference: torch.Tensor) -> Sample:
    """Each answer and behind it the mismatched one."""
    joined = join_examples([conversation(row.prompt, one) for row in rows for one in (row.answer, row.mismatched)])
    labels = np.repeat(np.array([row.is_desirable for row in rows]), 2)
    return Sample(joined.input_ids, joined.labels, joined.example_lengths, None, reference.numpy(), labels)


def samples_of(splits: Sequence[int], reference: torch.Tensor) -> list[Sample]:
    """All rows in order, so many in each sample."""
    ends = np.cumsum(splits)
    return [
        sample_of(RATED_ROWS[end - count : end], reference[2 * (end - count) : 2 * end])
        for count, end in zip(splits, ends.tolist(), strict=True)
    ]


def compared(loss: PreferenceLoss, batches: Sequence[Batch]) -> list[Batch]:
    """With their reference point, as the engine finds it."""
    with torch.no_grad():
        found = [loss(batch.mismatched) for batch in batches if batch.mismatched is not None]
    point = reference_point(torch.stack(found).sum(dim=0))
    return [replace(batch, reference_point=point) for batch in batches]


def trained(phase: float, layout: Layout, config: PreferenceTuningConfig = CONFIG) -> PreferenceLoss:
    return PreferenceLoss(with_attention(fixed_model(phase), layout), config).train()


def by_autograd(reference: torch.Tensor) -> Computed:
    """Loss and gradients through the whole logits of each answer alone."""
    model = fixed_model(AHEAD)
    sums = torch.stack([answer_sum(model, conversation(row.prompt, row.answer)) for row in RATED_ROWS])
    point = (sums_of(AHEAD)[1::2] - reference[1::2]).mean()
    assert point > 0.5
    labels = torch.tensor([row.is_desirable for row in RATED_ROWS])
    loss = rated_losses(RatedScores(sums, reference[::2], labels, point), CONFIG).sum()
    loss.backward()  # type: ignore[no-untyped-call] # torch is untyped here
    return Computed(loss.item(), {}, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_loss_and_gradients_are_those_through_the_whole_logits(reference: torch.Tensor) -> None:
    """Whatever the layout, and the samples and batches that the answers lie in."""
    expected = by_autograd(reference)
    for layout in LAYOUTS.values():
        loss = trained(AHEAD, layout)
        found = computed(loss, compared(loss, [collate(samples_of([4, 2, 3], reference), layout)]))
        assert_same(found, replace(expected, measures=found.measures))
    apart = [collate([sample, EMPTY_SAMPLE], layout) for sample in samples_of([1] * 9, reference)]
    assert_same(computed(loss, compared(loss, apart)), found)
    split = [collate(samples, layout) for samples in (samples_of([9], reference), [EMPTY_SAMPLE, EMPTY_SAMPLE])]
    assert_same(computed(loss, compared(loss, split)), found)
    loss.uses_own_logits = True
    assert_same(computed(loss, compared(loss, split)), found)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_row_without_a_mismatched_answer_is_left_out_of_the_reference_point(
    layout: Layout, reference: torch.Tensor
) -> None:
    """A token without loss stands where it would."""
    row = RATED_ROWS[0]
    joined = join_examples([conversation(row.prompt, row.answer), conversation(row.prompt[:1], [])])
    lonely = Sample(
        joined.input_ids, joined.labels, joined.example_lengths, None, np.zeros(2, np.float32), np.array([True, True])
    )
    loss = trained(AHEAD, layout)
    others = samples_of([1, 1], reference)
    with_it, without, alone = (compared(loss, [collate(s, layout)])[0] for s in ([lonely, *others], others, [lonely]))
    assert with_it.reference_point is not None and without.reference_point is not None
    assert with_it.reference_point.item() == pytest.approx(without.reference_point.item(), rel=1e-6)
    assert alone.reference_point is not None and alone.reference_point.item() == 0


def test_an_empty_batch_gives_exactly_nothing() -> None:
    """And every trained weight gets a gradient: DeepSpeed waits for each of them on all ranks."""
    loss = trained(AHEAD, ONE_ROW)
    found = computed(loss, compared(loss, [collate([EMPTY_SAMPLE, EMPTY_SAMPLE], ONE_ROW)]))
    assert found.loss == 0
    assert set(found.measures.values()) == {0.0}
    assert found.gradients.keys() == {name for name, _ in loss.model.named_parameters()}
    assert all(torch.count_nonzero(gradient) == 0 for gradient in found.gradients.values())


def test_numbers_computed_beforehand_are_those_of_both_conversations(reference: torch.Tensor) -> None:
    """As a reference worker lays them out, in the order in which they lie in the sample."""
    batch = collate(samples_of([5, 4], reference), Layout(by_documents=True, of_answers=True))
    assert batch.answers is not None
    found = AnswerScorer(with_attention(fixed_model(BEHIND), ONE_ROW)).eval().answer_sums(batch, batch.answers)
    assert found.tolist() == pytest.approx(reference.tolist(), rel=1e-6)


def test_the_adapter_switched_off_is_the_reference() -> None:
    """As if the base model had been asked beforehand, of the mismatched answers as well."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(with_attention(fixed_model(AHEAD), ONE_ROW), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    batches = [collate(samples_of([9], sums_of(AHEAD)), ONE_ROW)]
    off, stored = (
        PreferenceLoss(model, CONFIG.model_copy(update={"reference": source})).train()
        for source in ("adapter_off", "precomputed")
    )
    found = computed(off, compared(off, batches))
    assert_same(found, computed(stored, compared(stored, batches)))
    assert found.loss != pytest.approx((5 * 1.5 + 4 * 0.75) / 2, rel=1e-3)  # the adapter does something


BY_TRL = {
    ("behind", 0.1, 1.0, 1.0): {
        "loss": 0.4698326289653778,
        "kl": 0.0,
        "rewards/chosen": 0.0030987799167633058,
        "logps/chosen": -16.326699829101564,
        "rewards/rejected": -0.30371928215026855,
        "logps/rejected": -25.52486801147461,
        "rewards/margins": 0.3068180620670319,
    },
    ("ahead", 0.1, 1.0, 1.0): {
        "loss": 0.5326125621795654,
        "kl": 0.6995014548301697,
        "rewards/chosen": -0.0030987799167633058,
        "logps/chosen": -16.357688903808594,
        "rewards/rejected": 0.30371928215026855,
        "logps/rejected": -22.487672805786133,
        "rewards/margins": -0.3068180620670319,
    },
    ("ahead", 0.2, 1.5, 0.75): {
        "loss": 0.6358147859573364,
        "kl": 0.6995014548301697,
        "rewards/chosen": -0.0061975598335266115,
        "logps/chosen": -16.357688903808594,
        "rewards/rejected": 0.6074385643005371,
        "logps/rejected": -22.487672805786133,
        "rewards/margins": -0.6136361241340638,
    },
}
"""Which models, beta and weights -> what TRL 1.16 computes (`trl_kto.py`)."""
NAMES = {
    "kl": "kl",
    "reward_desirable": "rewards/chosen",
    "log_probability_desirable": "logps/chosen",
    "reward_undesirable": "rewards/rejected",
    "log_probability_undesirable": "logps/rejected",
    "reward_margin": "rewards/margins",
}
Case = tuple[str, float, float, float]


def by_llmforge(case: Case) -> dict[str, float]:
    """Loss and metrics by the names that TRL has for them."""
    models, beta, desirable, undesirable = case
    update = {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable}
    model, reference = (AHEAD, BEHIND) if models == "ahead" else (BEHIND, AHEAD)
    loss = trained(model, ONE_ROW, CONFIG.model_copy(update=update))
    found = computed(loss, compared(loss, [collate(samples_of([9], sums_of(reference)), ONE_ROW)]))
    means = rated_means(list(found.measures.values()), 9)
    return {"loss": found.loss / 9} | {theirs: means[ours] for ours, theirs in NAMES.items()}


@pytest.mark.parametrize("case", BY_TRL)
def test_losses_and_metrics_are_those_that_trl_has_computed(case: Case) -> None:
    assert by_llmforge(case) == pytest.approx(BY_TRL[case], rel=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_losses_and_metrics_are_those_of_trl() -> None:
    """In a process of its own, so that what TRL imports and warns of stays there."""
    command = [sys.executable, "-m", "tests.train.trl_kto"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    theirs: dict[Case, dict[str, float]] = {tuple(case): numbers for *case, numbers in found}
    assert theirs.keys() == BY_TRL.keys()
    for case, numbers in theirs.items():
        ours = by_llmforge(case)
        assert ours == pytest.approx({name: numbers[name] for name in ours}, rel=2e-5)

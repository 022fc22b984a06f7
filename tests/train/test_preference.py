"""The loss of pairs: that of each answer alone, whatever shares a row with it, and that of another program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import peft
import pytest
import torch

from llmforge.config.activation_plan import LOGITS_AT_ONCE
from llmforge.config.training import PreferenceTuningConfig
from llmforge.dataset.example import Example
from llmforge.dataset.shards import Sample
from llmforge.train.batches import EMPTY_SAMPLE, Layout, collate
from llmforge.train.preference import AnswerScorer, PreferenceLoss
from llmforge.train.preference_losses import PairScores, pair_losses
from tests.dataset.samples import join_examples
from tests.train.answer_losses import (
    Computed,
    Gradients,
    answer_sum,
    assert_same,
    computed,
    conversation,
    with_attention,
)
from tests.train.answers import ROWS, VOCABULARY, Row, fixed_model

ONE_ROW = Layout(by_documents=True, of_answers=True)
LAYOUTS = {
    "one row": ONE_ROW,
    "a row for each sample": Layout(of_answers=True),
    "padded": Layout(of_answers=True, pad_to=40),
    "answers alone in one row": Layout(by_documents=True, of_answers=True, alone=True),
    "answers alone, padded": Layout(of_answers=True, alone=True, pad_to=24),
}
CONFIGS = {
    "dpo": PreferenceTuningConfig(loss="dpo", beta=0.5, label_smoothing=0.2, reference="precomputed"),
    "ipo": PreferenceTuningConfig(loss="ipo", beta=0.3, reference="precomputed"),
    "simpo": PreferenceTuningConfig(loss="simpo", beta=2.0, gamma=1.0),
    "orpo": PreferenceTuningConfig(loss="orpo", beta=0.1),
}


def conversations(rows: Sequence[Row]) -> list[Example]:
    """Of all rows, the chosen answer of each before the rejected one."""
    return [conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]


@torch.no_grad()
def answer_sums(model: torch.nn.Module) -> torch.Tensor:
    """Log-probabilities of all answers by the definition, one after another."""
    return torch.stack([answer_sum(model, example) for example in conversations(ROWS)])


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return answer_sums(fixed_model(0.4))


def samples_of(splits: Sequence[int], reference: torch.Tensor) -> list[Sample]:
    """All pairs in order, so many in each sample, with their reference."""
    samples, start = [], 0
    for count in splits:
        joined = join_examples(conversations(ROWS[start : start + count]))
        values = reference[2 * start : 2 * (start + count)].numpy()
        samples.append(Sample(joined.input_ids, joined.labels, joined.example_lengths, None, values))
        start += count
    return samples


def by_autograd(config: PreferenceTuningConfig, reference: torch.Tensor) -> tuple[float, Gradients]:
    """Loss and gradients through the whole logits of each answer alone."""
    model = fixed_model(0.0)
    sums = torch.stack([answer_sum(model, example) for example in conversations(ROWS)])
    counts = torch.tensor([float(len(answer)) for row in ROWS for answer in (row.chosen, row.rejected)])
    scores = PairScores(sums[::2], sums[1::2], counts[::2], counts[1::2], reference[::2], reference[1::2])
    loss = pair_losses(scores, config).sum()
    loss.backward()  # type: ignore[no-untyped-call] # torch is untyped here
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_through_the_whole_logits(
    name: str, reference: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the layout, the samples that the pairs lie in, and the chunks of the output layer."""
    expected_loss, expected_gradients = by_autograd(CONFIGS[name], reference)
    for layout in LAYOUTS.values():
        loss = PreferenceLoss(with_attention(fixed_model(0.0), layout), CONFIGS[name]).train()
        found = computed(loss, [collate(samples_of([2, 1, 2], reference), layout)])
        assert_same(found, Computed(expected_loss, found.measures, expected_gradients))
    split = [collate(samples, layout) for samples in (samples_of([5], reference), [EMPTY_SAMPLE, EMPTY_SAMPLE])]
    assert_same(computed(loss, split), found)
    apart = [collate([sample, EMPTY_SAMPLE], layout) for sample in samples_of([1] * 5, reference)]
    assert_same(computed(loss, apart), found)
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 5 * VOCABULARY)
    assert_same(computed(loss, apart[:0] + split), found)
    loss.uses_own_logits = True
    assert_same(computed(loss, split), found)


def test_an_empty_batch_gives_exactly_nothing(reference: torch.Tensor) -> None:
    """And every trained weight gets a gradient: DeepSpeed waits for each of them on all ranks."""
    loss = PreferenceLoss(with_attention(fixed_model(0.0), ONE_ROW), CONFIGS["dpo"]).train()
    found = computed(loss, [collate([EMPTY_SAMPLE, EMPTY_SAMPLE], ONE_ROW)])
    assert found.loss == 0
    assert set(found.measures.values()) == {0.0}
    assert found.gradients.keys() == {name for name, _ in loss.model.named_parameters()}
    assert all(torch.count_nonzero(gradient) == 0 for gradient in found.gradients.values())


def test_evaluation_gives_the_same_numbers(reference: torch.Tensor) -> None:
    loss = PreferenceLoss(with_attention(fixed_model(0.0), ONE_ROW), CONFIGS["dpo"])
    batch = collate(samples_of([3, 2], reference), ONE_ROW)
    found = computed(loss.train(), [batch])
    with torch.no_grad():
        value, measures = loss.eval()(batch)
    assert value.item() == pytest.approx(found.loss, rel=1e-6)
    assert measures.tolist() == pytest.approx(list(found.measures.values()), rel=1e-6)


def test_a_factor_of_the_loss_is_one_of_the_gradients(reference: torch.Tensor) -> None:
    """DeepSpeed scales losses, by the number of micro-batches and against underflow."""
    loss = PreferenceLoss(with_attention(fixed_model(0.0), ONE_ROW), CONFIGS["simpo"]).train()
    batch = collate(samples_of([5], reference), ONE_ROW)
    found = computed(loss, [batch])
    loss.zero_grad()
    (loss(batch)[0] * 64).backward()
    scaled = {name: p.grad / 64 for name, p in loss.model.named_parameters() if p.grad is not None}
    assert_same(Computed(found.loss, found.measures, scaled), found)


def test_no_pair_sees_another(reference: torch.Tensor) -> None:
    loss = PreferenceLoss(with_attention(fixed_model(0.0), ONE_ROW), CONFIGS["dpo"]).eval()
    other = [Row([1, 50], [51, 2], [52, 2])]
    joined, alone = (
        collate(
            [join_with_reference([*rows, ROWS[0]], torch.tensor([-9.0, -8.0] * len(rows) + [*reference[:2]]))], ONE_ROW
        )
        for rows in (other, [])
    )
    lonely = collate([join_with_reference(other, torch.tensor([-9.0, -8.0]))], ONE_ROW)
    with torch.no_grad():
        assert loss(joined)[0].item() == pytest.approx(loss(alone)[0].item() + loss(lonely)[0].item(), rel=1e-6)


def join_with_reference(rows: Sequence[Row], reference: torch.Tensor) -> Sample:
    joined = join_examples(conversations(rows))
    return Sample(joined.input_ids, joined.labels, joined.example_lengths, None, reference.numpy())


def test_precomputed_log_probabilities_are_those_of_the_definition(reference: torch.Tensor) -> None:
    batch = collate(samples_of([2, 3], reference), ONE_ROW)
    assert batch.answers is not None
    found = AnswerScorer(with_attention(fixed_model(0.4), ONE_ROW)).eval().answer_sums(batch, batch.answers)
    assert found.tolist() == pytest.approx(reference.tolist(), rel=1e-6)


LORA = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")


def test_the_adapter_switched_off_is_the_reference() -> None:
    """As if the base model had been asked beforehand; and the adapter, with its dropout, is on again afterwards."""
    torch.manual_seed(0)
    model = peft.get_peft_model(with_attention(fixed_model(0.4), ONE_ROW), LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    base = answer_sums(fixed_model(0.4))
    batch = collate(samples_of([5], base), ONE_ROW)
    off = PreferenceLoss(model, PreferenceTuningConfig(beta=0.5, reference="adapter_off")).train()
    stored = PreferenceLoss(model, PreferenceTuningConfig(beta=0.5, reference="precomputed")).train()
    torch.manual_seed(1)
    with_adapter_off = computed(off, [batch])
    assert all(module.training for module in model.modules())
    torch.manual_seed(1)
    assert_same(with_adapter_off, computed(stored, [batch]))
    assert with_adapter_off.loss != pytest.approx(len(ROWS) * np.log(2), rel=1e-3)  # the adapter does something


BY_TRL = {
    ("dpo", 0.1): {
        "loss": 0.5819411873817444,
        "rewards/chosen": 0.003098779823631048,
        "rewards/rejected": -0.3275967538356781,
        "rewards/accuracies": 0.6000000238418579,
        "rewards/margins": 0.33069556951522827,
        "logps/chosen": -16.32670021057129,
        "logps/rejected": -22.766223907470703,
    },
    ("dpo", 0.5): {
        "loss": 0.8165987133979797,
        "rewards/chosen": 0.01549386978149414,
        "rewards/rejected": -1.6379839181900024,
        "rewards/accuracies": 0.6000000238418579,
        "rewards/margins": 1.6534779071807861,
        "logps/chosen": -16.32670021057129,
        "logps/rejected": -22.766223907470703,
    },
    ("ipo", 0.3): {
        "loss": 6.414750576019287,
        "rewards/chosen": 0.00929633341729641,
        "rewards/rejected": -0.9827903509140015,
        "rewards/accuracies": 0.6000000238418579,
        "rewards/margins": 0.9920867085456848,
        "logps/chosen": -16.32670021057129,
        "logps/rejected": -22.766223907470703,
    },
}
"""Loss and beta -> what TRL 1.16 computes (`trl_losses.py`)."""
NAMES = {
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "log_probability_chosen": "logps/chosen",
    "log_probability_rejected": "logps/rejected",
}
Case = tuple[str, float]


def by_llmforge(case: Case, reference: torch.Tensor, label_smoothing: float = 0.0) -> dict[str, float]:
    """Loss and metrics by the names that TRL has for them."""
    keys = {"loss": case[0], "beta": case[1], "label_smoothing": label_smoothing, "reference": "precomputed"}
    config = PreferenceTuningConfig.model_validate(keys)
    loss = PreferenceLoss(with_attention(fixed_model(0.0), ONE_ROW), config).train()
    found = computed(loss, [collate(samples_of([5], reference), ONE_ROW)])
    means = {theirs: found.measures[ours] / len(ROWS) for ours, theirs in NAMES.items()}
    return {"loss": found.loss / len(ROWS), **means}


@pytest.mark.parametrize("case", BY_TRL)
def test_losses_and_metrics_are_those_that_trl_has_computed(case: Case, reference: torch.Tensor) -> None:
    assert by_llmforge(case, reference) == pytest.approx(BY_TRL[case], rel=2e-5)


def test_label_smoothing_takes_a_share_of_the_labels_for_wrong(reference: torch.Tensor) -> None:
    """Since -log sigmoid(-x) = x - log sigmoid(x), it adds this share of the margin to the loss."""
    theirs = BY_TRL["dpo", 0.5]
    expected = theirs["loss"] + 0.2 * theirs["rewards/margins"]
    assert by_llmforge(("dpo", 0.5), reference, 0.2)["loss"] == pytest.approx(expected, rel=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_losses_and_metrics_are_those_of_trl(reference: torch.Tensor) -> None:
    """In a process of its own, so that what TRL imports and warns of stays there."""
    command = [sys.executable, "-m", "tests.train.trl_losses"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    theirs = {(loss, beta): numbers for loss, beta, numbers in found}
    assert theirs.keys() == BY_TRL.keys()
    for case, numbers in theirs.items():
        ours = by_llmforge(case, reference)
        assert ours == pytest.approx({name: numbers[name] for name in ours}, rel=2e-5)

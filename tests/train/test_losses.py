"""The loss of a micro-batch: the sum over its examples as if each stood alone, whatever shares a row with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmforge.config.activation_plan import LOGITS_AT_ONCE
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.shards import Sample, SampleReader
from llmforge.errors import ModelError
from llmforge.models.attention import BY_DOCUMENTS, use_attention
from llmforge.train.batches import EMPTY_SAMPLE, Batch, Layout, collate
from llmforge.train.losses import LogitScaling, NextTokenLoss, OutputLoss
from tests.dataset.samples import join_examples
from tests.train.ranks import VOCABULARY, write_random_samples

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ATTENTIONS = ("sdpa_per_document", "sdpa", "eager")
LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}


@dataclass(frozen=True)
class Kind:
    """A tiny model with random weights."""

    family: str = "llama"
    # The windows are shorter than the examples: they must end at the start of an example too.
    settings: tuple[tuple[str, object], ...] = ()
    lora: tuple[tuple[str, object], ...] | None = None
    attentions: tuple[str, ...] = ("sdpa_per_document",)


KINDS = {
    "untied": Kind(settings=(("tie_word_embeddings", False),)),
    "tied": Kind(settings=(("tie_word_embeddings", True),), attentions=ATTENTIONS),
    "lora": Kind(lora=(("target_modules", "all-linear"),)),
    "lora on the head": Kind(lora=(("target_modules", ["q_proj", "lm_head"]),)),
    "dora on the head": Kind(lora=(("target_modules", ["q_proj", "lm_head"]), ("use_dora", True))),
    "a whole head": Kind(lora=(("target_modules", ["q_proj"]), ("modules_to_save", ["lm_head"]))),
    "mistral": Kind("mistral", (("sliding_window", 6),), attentions=ATTENTIONS),
    "gemma3": Kind(
        "gemma3_text",
        (("sliding_window", 6), ("layer_types", ["sliding_attention", "full_attention"]), ("head_dim", 8)),
        attentions=ATTENTIONS,
    ),
    "gemma2": Kind(
        "gemma2",
        (("final_logit_softcapping", 0.1), ("attn_logit_softcapping", 0.1), ("head_dim", 8)),
        attentions=("eager",),
    ),
    "granite": Kind("granite", (("logits_scaling", 4.0),)),
    "cohere": Kind("cohere", (("logit_scale", 0.25),)),
}


def build(kind: str, attention: str) -> tuple[NextTokenLoss, Layout]:
    """In training mode and without dropout; the same weights at every call."""
    torch.manual_seed(1)
    chosen = KINDS[kind]
    config = AutoConfig.for_model(chosen.family, **SHAPE, **dict(chosen.settings))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if "lm_head" in name or "embed_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # logits far enough from zero for a soft cap to be seen
    used = use_attention(model, attention, device=torch.device("cpu"))
    whole: PreTrainedModel | peft.PeftModel = model
    if chosen.lora is not None:
        whole = peft.get_peft_model(model, peft.LoraConfig(**LORA, **dict(chosen.lora)))
        for name, parameter in whole.named_parameters():
            if "lora_B" in name:  # zero at the start, and then lora_A has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    return NextTokenLoss(whole).train(), Layout(by_documents=used in BY_DOCUMENTS)


QUICK = (
    ("untied", "sdpa_per_document"),
    ("tied", "sdpa"),
    ("lora on the head", "sdpa_per_document"),
    ("gemma2", "eager"),
)
CASES = [
    pytest.param((kind, attention), marks=() if (kind, attention) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for attention in KINDS[kind].attentions
]
Case = tuple[NextTokenLoss, Layout]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


def random_example(length: int, seed: int) -> Example:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
    labels = np.where(generator.random(length) < 0.5, ids, np.int32(IGNORED_LABEL))
    labels[0], labels[-1] = IGNORED_LABEL, ids[-1]
    return Example(ids, labels)


EXAMPLES = [random_example(length, seed) for seed, length in enumerate((13, 2, 17, 1, 9))]
EXAMPLES[3] = Example(EXAMPLES[3].input_ids, np.full(1, IGNORED_LABEL, dtype=np.int32))  # one token, none trained
Gradients = dict[str, torch.Tensor]


def loss_and_gradients(loss: NextTokenLoss, batches: Sequence[Batch]) -> tuple[float, Gradients]:
    """Of the sum over micro-batches."""
    loss.zero_grad()
    total = 0.0
    for batch in batches:
        value = loss(batch)
        value.backward()
        total += value.item()
    return total, gradients_of(loss)


def gradients_of(loss: NextTokenLoss) -> Gradients:
    return {name: p.grad.clone() for name, p in loss.model.named_parameters() if p.grad is not None}


def plain_loss_and_gradients(loss: NextTokenLoss, examples: Sequence[Example]) -> tuple[float, Gradients]:
    """By the definition: one example at a time, all logits by the model itself, shifted by hand."""
    loss.zero_grad()
    total = 0.0
    for example in examples:
        arguments = collate([join_examples([example])], Layout(by_documents=True)).documents
        assert arguments is not None
        logits = loss.model(
            input_ids=torch.tensor(example.input_ids[None].astype(np.int64)), use_cache=False, **arguments.arguments
        ).logits[0]
        labels = torch.tensor(example.labels[1:].astype(np.int64))
        each = functional.cross_entropy(logits[:-1].float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
        value = each.sum() if example.weights is None else (each * torch.tensor(example.weights[1:])).sum()
        value.backward()  # type: ignore[no-untyped-call] # torch is untyped here
        total += value.item()
    return total, gradients_of(loss)


def assert_same(one: tuple[float, Gradients], other: tuple[float, Gradients], tolerance: float = 1e-6) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = other[1][name].abs().max().item()
        assert scale > 0, f"{name} has no gradient, so comparing it proves nothing"
        assert (gradient - other[1][name]).abs().max().item() <= 10 * tolerance * scale, name


def test_a_pack_has_the_loss_and_gradients_of_its_examples(case: Case) -> None:
    """Of the whole logits that the model itself gives for each example alone."""
    loss, layout = case
    packed = loss_and_gradients(loss, [collate([join_examples(EXAMPLES)], layout)])
    assert_same(packed, plain_loss_and_gradients(loss, EXAMPLES))


def test_several_packs_in_one_batch(case: Case) -> None:
    loss, layout = case
    packs = [join_examples(EXAMPLES[:2]), join_examples(EXAMPLES[2:3]), join_examples(EXAMPLES[3:])]
    expected = plain_loss_and_gradients(loss, EXAMPLES)
    assert_same(loss_and_gradients(loss, [collate(packs, layout)]), expected)
    assert_same(loss_and_gradients(loss, [collate(packs, replace(layout, pad_to=64))]), expected)


def test_chunks_change_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the output layer sees all trained positions at once or five at a time, in evaluation as well."""
    loss, layout = case
    batch = collate([join_examples(EXAMPLES)], layout)
    at_once = loss_and_gradients(loss, [batch])
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 5 * VOCABULARY)
    assert len(loss.head.chunks(len(batch.positions), torch.device("cpu"))) == 4
    assert_same(loss_and_gradients(loss, [batch]), at_once)
    with torch.no_grad():
        assert loss(batch).item() == pytest.approx(at_once[0], rel=1e-6)


def test_the_model_can_be_left_its_own_logits(case: Case) -> None:
    loss, layout = case
    batch = collate([join_examples(EXAMPLES[:2]), join_examples(EXAMPLES[2:])], layout)
    expected = loss_and_gradients(loss, [batch])
    loss.uses_own_logits = True
    assert_same(loss_and_gradients(loss, [batch]), expected)


def test_an_empty_sample_in_a_batch_changes_nothing(case: Case) -> None:
    loss, layout = case
    pack = join_examples(EXAMPLES)
    expected = loss_and_gradients(loss, [collate([pack], layout)])
    assert_same(loss_and_gradients(loss, [collate([EMPTY_SAMPLE, pack, EMPTY_SAMPLE], layout)]), expected)
    empty = collate([EMPTY_SAMPLE, EMPTY_SAMPLE], layout)
    assert_same(loss_and_gradients(loss, [collate([pack], layout), empty]), expected)


def test_an_empty_batch_gives_exactly_nothing(case: Case) -> None:
    """And every trained weight gets a gradient: DeepSpeed waits for each of them on all ranks."""
    loss, layout = case
    empty = [EMPTY_SAMPLE, EMPTY_SAMPLE]
    value, gradients = loss_and_gradients(loss, [collate(empty, layout), collate(empty, replace(layout, pad_to=32))])
    assert value == 0
    assert gradients.keys() == {name for name, parameter in loss.model.named_parameters() if parameter.requires_grad}
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients.values())


def test_weights_scale_loss_and_gradients(case: Case) -> None:
    loss, layout = case
    weighted = [
        Example(example.input_ids, example.labels, (example.labels != IGNORED_LABEL).astype(np.float32) * weight)
        for example, weight in zip(EXAMPLES, (1.0, 0.5, 2.0, 1.0, 0.25), strict=True)
    ]
    packs = [join_examples(weighted[:3]), join_examples(weighted[3:])]
    expected = plain_loss_and_gradients(loss, weighted)
    assert_same(loss_and_gradients(loss, [collate(packs, layout)]), expected, tolerance=2e-6)


def test_a_factor_of_the_loss_is_one_of_the_gradients(case: Case) -> None:
    """DeepSpeed scales losses, by the number of micro-batches and against underflow."""
    loss, layout = case
    batch = collate([join_examples(EXAMPLES)], layout)
    value, gradients = loss_and_gradients(loss, [batch])
    loss.zero_grad()
    (loss(batch) * 64).backward()
    scaled = {name: gradient / 64 for name, gradient in gradients_of(loss).items()}
    assert_same((value, scaled), (value, gradients))


def test_a_sample_without_weights_beside_one_with_some() -> None:
    plain, weighted = join_examples(EXAMPLES[:1]), join_examples([EXAMPLES[2]])
    trained = weighted.labels != IGNORED_LABEL
    half = Sample(weighted.input_ids, weighted.labels, weighted.example_lengths, trained.astype(np.float32) / 2)
    batch = collate([plain, half])
    assert batch.weights is not None
    assert batch.weights.tolist() == [1.0] * plain.num_trained_tokens + [0.5] * half.num_trained_tokens
    assert half.loss_weight == weighted.num_trained_tokens / 2
    assert collate([plain]).weights is None


def other_tokens(sample: Sample, unchanged: slice) -> Sample:
    """The sample with every token changed but those of one example."""
    ids = (sample.input_ids + 7) % np.int32(VOCABULARY)
    ids[unchanged] = sample.input_ids[unchanged]
    return replace(sample, input_ids=ids, labels=np.where(sample.labels == IGNORED_LABEL, sample.labels, ids))


@torch.no_grad()
def test_no_example_sees_another(case: Case) -> None:
    """Whatever the others hold, the loss of an example is the same, bit for bit."""
    loss, layout = case
    pack = join_examples(EXAMPLES)
    ends = np.cumsum(pack.example_lengths)
    for start, end in zip(ends - pack.example_lengths, ends, strict=True):
        place = slice(int(start), int(end))
        labels = np.full_like(pack.labels, IGNORED_LABEL)
        labels[place] = pack.labels[place]
        own = replace(pack, labels=labels)
        expected = loss(collate([own], replace(layout, pad_to=60)))
        changed = collate([other_tokens(own, place)], replace(layout, pad_to=60))
        changed.input_ids[:, len(pack.labels) :] = 5  # the padding as well
        assert torch.equal(loss(changed), expected)
        # A guard: the loss does follow the tokens of the example itself.
        if (labels != IGNORED_LABEL).any():
            moved = collate([other_tokens(own, slice(0, 0))], replace(layout, pad_to=60))
            assert not torch.equal(loss(moved), expected)


@torch.no_grad()
def naive_loss(model: torch.nn.Module, sample: Sample) -> float:
    """By the definition: one example at a time, all logits, shifted by hand, in float64."""
    total = 0.0
    for end, length in zip(np.cumsum(sample.example_lengths), sample.example_lengths, strict=True):
        ids, labels = sample.input_ids[end - length : end], sample.labels[end - length : end]
        logits = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].double().numpy()
        for position in np.flatnonzero(labels != IGNORED_LABEL):
            before = logits[position - 1]
            total += np.log(np.exp(before - before.max()).sum()) + before.max() - before[labels[position]]
    return total


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_against_the_definition_in_float64(tmp_path: Path, attention: str) -> None:
    write_random_samples(tmp_path)
    (loss, layout), (reference, _) = build("untied", attention), build("untied", "eager")
    reference.double()
    for name in ("packed", "alone"):
        reader = SampleReader([tmp_path / f"{name}.arrow"])
        samples = [reader[index] for index in range(len(reader))]
        trained_tokens = int(reader.num_trained_tokens.sum())
        mean = sum(naive_loss(reference.model, sample) for sample in samples) / trained_tokens
        assert loss(collate(samples, layout)).item() / trained_tokens == pytest.approx(mean, rel=1e-6)


def test_the_loss_is_float32_whatever_the_model() -> None:
    loss, layout = build("untied", "sdpa_per_document")
    batch = collate([join_examples(EXAMPLES)], layout)
    exact, rounded = loss(batch), loss.bfloat16()(batch)
    assert exact.dtype == rounded.dtype == torch.float32
    assert exact.shape == rounded.shape == ()
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


def test_the_output_layer_sees_trained_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the memory of a step, where the vocabulary is large."""
    seen: list[tuple[int, ...]] = []

    class Watched(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(inputs.shape))
            return super().forward(inputs)

    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 2 * VOCABULARY)
    head = OutputLoss(Watched(8, VOCABULARY), VOCABULARY, LogitScaling())
    hidden = torch.randn(5, 8, requires_grad=True)
    head(hidden, torch.arange(5), None).backward()
    assert seen == [(2, 8), (2, 8), (1, 8)]  # and the backward pass computes none of them again
    pack = join_examples(EXAMPLES)
    assert len(collate([pack, pack]).positions) == 2 * pack.num_trained_tokens


def test_another_package_can_compute_the_loss_of_a_plain_output_layer() -> None:
    """Given the trained positions only, and not asked where messages have weights."""
    asked: list[int] = []

    def fused(hidden: torch.Tensor, layer: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
        asked.append(len(targets))
        return functional.cross_entropy(layer(hidden), targets, reduction="sum")

    loss, layout = build("untied", "sdpa_per_document")
    pack = join_examples(EXAMPLES)
    batch = collate([pack], layout)
    expected = loss_and_gradients(loss, [batch])
    loss.head.use(fused)
    assert_same(loss_and_gradients(loss, [batch]), expected)
    loss(replace(batch, weights=torch.ones(len(batch.targets))))
    assert asked == [pack.num_trained_tokens]


@pytest.mark.parametrize("kind", ["lora on the head", "granite"])
def test_it_is_refused_where_it_would_be_wrong(kind: str) -> None:
    model = build(kind, "eager")[0].model
    with pytest.raises(ModelError, match="fused_linear_cross_entropy, which takes a plain output layer only"):
        NextTokenLoss(model, lambda hidden, layer, targets: hidden.sum())

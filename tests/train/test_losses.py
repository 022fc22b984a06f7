"""The loss of a micro-batch: the sum over its examples as if each stood alone, whatever shares a row with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.shards import Sample, SampleReader
from llmforge.train.batches import EMPTY_SAMPLE, Batch, collate
from llmforge.train.losses import next_token_loss
from tests.dataset.samples import join_examples
from tests.train.ranks import VOCABULARY, tiny_model, write_random_samples

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# The windows are shorter than the examples: they must end at the start of an example too.
OTHER_MODELS: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
}


def build(name: str, attention: str) -> torch.nn.Module:
    """A tiny model with random weights, in training mode and without dropout."""
    torch.manual_seed(1)
    if name in OTHER_MODELS:
        config = AutoConfig.for_model(name, **SHAPE, **OTHER_MODELS[name])
        built: torch.nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return built.train()
    model = tiny_model(name)
    (model if name == "full" else model.get_base_model()).set_attn_implementation(attention)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # zero at the start, and then lora_A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    trainable: torch.nn.Module = model
    return trainable.train()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["full", "lora", *OTHER_MODELS])
def model(request: pytest.FixtureRequest, attention: str) -> torch.nn.Module:
    return build(request.param, attention)


def random_example(length: int, seed: int) -> Example:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
    labels = np.where(generator.random(length) < 0.5, ids, np.int32(IGNORED_LABEL))
    labels[0], labels[-1] = IGNORED_LABEL, ids[-1]
    return Example(ids, labels)


EXAMPLES = [random_example(length, seed) for seed, length in enumerate((13, 2, 17, 1, 9))]
EXAMPLES[3] = Example(EXAMPLES[3].input_ids, np.full(1, IGNORED_LABEL, dtype=np.int32))  # one token, none trained


def loss_and_gradients(model: torch.nn.Module, batches: Sequence[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the sum over micro-batches."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = next_token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call] # torch is untyped here
        total += loss.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients


def assert_same(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]], tolerance: float = 1e-6
) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = other[1][name].abs().max().item()
        assert scale > 0, f"{name} has no gradient, so comparing it proves nothing"
        assert (gradient - other[1][name]).abs().max().item() <= 10 * tolerance * scale, name


def alone(examples: Sequence[Example]) -> list[Batch]:
    return [collate([join_examples([example])]) for example in examples]


def test_a_pack_has_the_loss_and_gradients_of_its_examples(model: torch.nn.Module) -> None:
    packed = loss_and_gradients(model, [collate([join_examples(EXAMPLES)])])
    assert_same(packed, loss_and_gradients(model, alone(EXAMPLES)))


def test_several_packs_padded_to_one_width(model: torch.nn.Module) -> None:
    packs = [join_examples(EXAMPLES[:2]), join_examples(EXAMPLES[2:3]), join_examples(EXAMPLES[3:])]
    expected = loss_and_gradients(model, alone(EXAMPLES))
    assert_same(loss_and_gradients(model, [collate(packs)]), expected)
    assert_same(loss_and_gradients(model, [collate(packs, pad_to=64)]), expected)


def test_an_empty_sample_in_a_batch_changes_nothing(model: torch.nn.Module) -> None:
    pack = join_examples(EXAMPLES)
    expected = loss_and_gradients(model, [collate([pack])])
    assert_same(loss_and_gradients(model, [collate([EMPTY_SAMPLE, pack, EMPTY_SAMPLE])]), expected)
    assert_same(loss_and_gradients(model, [collate([pack]), collate([EMPTY_SAMPLE, EMPTY_SAMPLE])]), expected)


def test_an_empty_batch_gives_exactly_nothing(model: torch.nn.Module) -> None:
    """And every trained weight gets a gradient: DeepSpeed waits for each of them on all ranks."""
    empty = [EMPTY_SAMPLE, EMPTY_SAMPLE]
    loss, gradients = loss_and_gradients(model, [collate(empty), collate(empty, pad_to=32)])
    assert loss == 0
    assert gradients.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients.values())


def test_weights_scale_loss_and_gradients(model: torch.nn.Module) -> None:
    """Against the plain loss of each example alone, times its weight."""
    weights = (1.0, 0.5, 2.0, 1.0, 0.25)
    weighted = [
        Example(example.input_ids, example.labels, (example.labels != IGNORED_LABEL).astype(np.float32) * weight)
        for example, weight in zip(EXAMPLES, weights, strict=True)
    ]
    packed = loss_and_gradients(model, [collate([join_examples(weighted[:3]), join_examples(weighted[3:])])])
    expected_loss = 0.0
    expected: dict[str, torch.Tensor] = {}
    for example, weight in zip(EXAMPLES, weights, strict=True):
        loss, gradients = loss_and_gradients(model, alone([example]))
        expected_loss += weight * loss
        for name, gradient in gradients.items():
            expected[name] = expected.get(name, torch.zeros_like(gradient)) + weight * gradient
    assert_same(packed, (expected_loss, expected), tolerance=2e-6)


def test_a_sample_without_weights_beside_one_with_some() -> None:
    plain, weighted = join_examples(EXAMPLES[:1]), join_examples([EXAMPLES[2]])
    half = Sample(
        weighted.input_ids,
        weighted.labels,
        weighted.example_lengths,
        (weighted.labels != IGNORED_LABEL).astype(np.float32) / 2,
    )
    batch = collate([plain, half])
    assert batch.weights is not None
    assert batch.weights[0].tolist() == [1.0] * batch.labels.shape[1]
    assert set(batch.weights[1][batch.labels[1] != IGNORED_LABEL].tolist()) == {0.5}
    assert half.loss_weight == weighted.num_trained_tokens / 2
    assert collate([plain]).weights is None


def other_tokens(sample: Sample, unchanged: slice) -> Sample:
    """The sample with every token changed but those of one example."""
    ids = (sample.input_ids + 7) % np.int32(VOCABULARY)
    ids[unchanged] = sample.input_ids[unchanged]
    return replace(sample, input_ids=ids)


@torch.no_grad()
def test_no_example_sees_another(model: torch.nn.Module) -> None:
    """Whatever the others hold, logits and loss of an example are the same, bit for bit."""
    pack = join_examples(EXAMPLES)
    ends = np.cumsum(pack.example_lengths)
    for start, end in zip(ends - pack.example_lengths, ends, strict=True):
        place = slice(int(start), int(end))
        labels = np.full_like(pack.labels, IGNORED_LABEL)
        labels[place] = pack.labels[place]
        batch = collate([replace(pack, labels=labels)], pad_to=60)
        changed = collate([other_tokens(replace(pack, labels=labels), place)], pad_to=60)
        changed.input_ids[:, len(pack.labels) :] = 5  # the padding as well
        assert torch.equal(next_token_loss(model, changed), next_token_loss(model, batch))
        assert torch.equal(logits_of(model, changed)[:, place], logits_of(model, batch)[:, place])
        # A guard: the loss does follow the tokens of the example itself.
        own = collate([other_tokens(replace(pack, labels=labels), slice(0, 0))], pad_to=60)
        if (labels != IGNORED_LABEL).any():
            assert not torch.equal(next_token_loss(model, own), next_token_loss(model, batch))


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    return logits


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


def test_against_the_definition_in_float64(tmp_path: Path, attention: str) -> None:
    write_random_samples(tmp_path)
    model, reference = build("full", attention), build("full", attention).double()
    for name in ("packed", "alone"):
        reader = SampleReader([tmp_path / f"{name}.arrow"])
        samples = [reader[index] for index in range(len(reader))]
        trained_tokens = int(reader.num_trained_tokens.sum())
        mean = sum(naive_loss(reference, sample) for sample in samples) / trained_tokens
        assert next_token_loss(model, collate(samples)).item() / trained_tokens == pytest.approx(mean, rel=1e-6)


def test_the_loss_is_float32_whatever_the_model() -> None:
    batch = collate([join_examples(EXAMPLES)])
    exact = next_token_loss(build("full", "sdpa"), batch)
    rounded = next_token_loss(build("full", "sdpa").bfloat16(), batch)
    assert exact.dtype == rounded.dtype == torch.float32
    assert exact.shape == rounded.shape == ()
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


def test_logits_only_where_a_row_needs_them() -> None:
    """Most of the memory of a step, where the vocabulary is large."""
    model = build("full", "sdpa")
    num_rows: list[int] = []
    model.get_submodule("lm_head").register_forward_hook(
        lambda module, inputs, output: num_rows.append(output.shape[:-1].numel())
    )
    ids = np.arange(10, dtype=np.int32)
    labels = np.full((2, 10), IGNORED_LABEL, dtype=np.int32)
    labels[0, 3:5], labels[1, 4], labels[1, 9] = ids[3:5], ids[4], ids[9]  # predicted at columns 2, 3 and 8
    samples = [Sample(ids, row, np.array([10], dtype=np.int32)) for row in labels]
    next_token_loss(model, collate(samples, pad_to=32))
    assert num_rows == [2 * 3]

"""The parts of a step that need a GPU: attention by flash kernels, Liger's loss, the device's own memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.errors import ModelError
from llmforge.models.attention import BY_DOCUMENTS, use_attention
from llmforge.models.liger import fused_loss
from llmforge.train.batches import Layout, collate
from llmforge.train.losses import NextTokenLoss
from llmforge.train.memory import device_memory_bytes, shortage_explained
from llmforge.train.step_clock import StepClock
from tests.dataset.samples import join_examples

pytestmark = pytest.mark.gpu
VOCABULARY = 512
LENGTHS = (130, 7, 64, 1, 300)
PACKAGES = {"flash_attention_2": "flash_attn"}


def build(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config).to("cuda", dtype)


def example(length: int, seed: int) -> Example:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
    labels = np.where(generator.random(length) < 0.4, ids, np.int32(IGNORED_LABEL)).astype(np.int32)
    labels[0] = IGNORED_LABEL
    return Example(ids, labels)


EXAMPLES = [example(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("attention", ["flash_attention_2", "varlen", "sdpa_per_document", "flex", "sdpa"])
def test_every_attention_keeps_examples_apart(attention: str) -> None:
    """Loss and gradients of a pack in bf16 are those of its examples alone, by eager attention in fp32."""
    if attention in PACKAGES:
        pytest.importorskip(PACKAGES[attention])
    device = torch.device("cuda")
    reference = build(torch.float32)
    used = use_attention(reference, "eager", device=device)
    assert used == "eager"
    expected_loss = NextTokenLoss(reference)
    expected = sum(expected_loss(collate([join_examples([one])]).to(device)) for one in EXAMPLES)
    expected.backward()

    model = build(torch.bfloat16)
    used = use_attention(model, attention, device=device)
    loss = NextTokenLoss(model)
    layout = Layout(by_documents=used in BY_DOCUMENTS)
    packs = [join_examples(EXAMPLES[:2]), join_examples(EXAMPLES[2:])]
    found = loss(collate(packs, layout).to(device))
    found.backward()
    assert found.item() == pytest.approx(float(expected), rel=1e-2)
    for (name, first), second in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None
        error = (second.grad.float() - first.grad).norm() / first.grad.norm()
        assert error < 0.05, name


def test_auto_takes_a_flash_kernel() -> None:
    assert use_attention(build(torch.bfloat16), "auto", device=torch.device("cuda")) in ("flash_attention_2", "varlen")


def test_ligers_loss_is_ours() -> None:
    pytest.importorskip("liger_kernel")
    device = torch.device("cuda")
    batch = collate([join_examples(EXAMPLES)], Layout(by_documents=True)).to(device)
    model = build(torch.float32)
    use_attention(model, "sdpa_per_document", device=device)
    values, gradients = [], []
    for loss in (NextTokenLoss(model), NextTokenLoss(model, fused_loss())):
        model.zero_grad()
        value = loss(batch)
        value.backward()
        values.append(value.item())
        gradients.append(model.lm_head.weight.grad.clone())
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_a_shortage_of_the_device_is_explained() -> None:
    device = torch.device("cuda")
    total = device_memory_bytes(device, 1)
    with (
        pytest.raises(ModelError, match=r"does not fit into the .* GiB of a device \(CUDA out of memory"),
        shortage_explained("the largest micro-batch", total, lambda: ["train_batch_size_per_device: 1"]),
    ):
        torch.empty(2 * total, dtype=torch.uint8, device=device)


def test_the_clock_measures_the_device() -> None:
    clock = StepClock(torch.device("cuda"))
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        matrix = matrix @ matrix / 64
    clock.mark("forward")
    torch.cuda.synchronize()
    assert clock.seconds()["forward"] > 1e-4

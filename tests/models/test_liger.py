"""Liger's kernels: the same answers and gradients on a GPU, a clear refusal elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.models.adapter import add_adapter
from llmforge.models.liger import apply_liger_kernel
from tests.models.tiny import TOKENS, llama


def refusal(**arguments: bool) -> str:
    with pytest.raises(ModelError) as caught:
        apply_liger_kernel(llama(), dict(arguments))
    return str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without a GPU")
def test_without_a_gpu() -> None:
    assert refusal() == "liger_kernel: needs a GPU, and there is none here; set enabled to false"


@pytest.mark.gpu
def test_an_argument_that_the_family_does_not_have() -> None:
    pytest.importorskip("liger_kernel")
    assert refusal(geglu=True) == ("liger_kernel.kwargs: found geglu, allowed for llama: rope, rms_norm, swiglu")


@pytest.mark.gpu
@pytest.mark.parametrize("with_adapter", [False, True])
def test_answers_and_gradients_are_the_same(with_adapter: bool) -> None:
    pytest.importorskip("liger_kernel")
    plain = llama(initializer_range=0.05).to("cuda")
    fused = copy.deepcopy(plain)
    expected_model = _with_adapter(plain) if with_adapter else plain
    ids = TOKENS.to("cuda")
    expected = expected_model(ids, labels=ids)
    expected.loss.backward()
    apply_liger_kernel(fused, {})
    model = _with_adapter(fused) if with_adapter else fused
    found = model(ids, labels=ids)
    found.loss.backward()
    assert "Liger" in type(fused.model.layers[0].mlp).__name__ or "liger" in fused.model.norm.forward.__module__
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    for (name, first), second in zip(expected_model.named_parameters(), model.parameters(), strict=True):
        if first.grad is not None:
            torch.testing.assert_close(second.grad, first.grad, atol=1e-4, rtol=1e-3, msg=name)


def _with_adapter(model: PreTrainedModel) -> PeftModel:
    torch.manual_seed(1)
    adapted = add_adapter(model, LoraConfig(target_modules="all-linear", init_lora_weights=False), "base")
    return adapted.to("cuda")

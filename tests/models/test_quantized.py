"""Base weights in 4 and 8 bits: close to the whole ones, frozen, with an adapter that learns and comes back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llmforge.config.job_memory import quantized_weights
from llmforge.config.model import LoraConfig, QuantizationConfig
from llmforge.errors import ModelError
from llmforge.models.adapter_files import load_adapter, resume_adapter, save_adapter, start_adapter
from llmforge.models.folder import read_model_facts
from llmforge.models.load import Precision
from llmforge.models.quantized import bitsandbytes_config
from tests.models.tiny import llama, load, logits, mixtral, train, trained

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes", reason="wants the extra quantization")

KINDS = {
    "nf4": QuantizationConfig(),
    "nf4, single": QuantizationConfig(double_quantization=False),
    "fp4": QuantizationConfig(type="fp4"),
    "int8": QuantizationConfig(bits=8),
}
ERRORS = {"nf4": 0.15, "nf4, single": 0.15, "fp4": 0.2, "int8": 0.02}
"""Mean difference of a logit from that of the whole weights, by the mean logit: what so few bits keep of them."""
LORA = LoraConfig(target_modules="all-linear", r=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama(initializer_range=0.02).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_answers_stay_close(name: str, precision: Precision, base: Path) -> None:
    expected, found = logits(load(base)), logits(load(base, KINDS[name], precision)).float()
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert 0 < error < ERRORS[name]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_quantized(name: str, base: Path) -> None:
    model = load(base, KINDS[name], "bf16")
    whole = {key for key, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
    assert whole == {key for key, _ in model.named_parameters() if "_proj" not in key}
    kinds = {weight.dtype for key, weight in model.named_parameters() if "_proj" in key}
    assert kinds == {torch.int8 if KINDS[name].bits == 8 else torch.uint8}


@pytest.mark.parametrize("name", KINDS)
def test_bytes_of_quantized_weights(name: str, base: Path) -> None:
    """Against what the loaded layers hold, but for tables of a few hundred bytes a layer that do not grow with it."""
    planned = quantized_weights(read_model_facts(base).shape, KINDS[name])
    assert planned is not None
    layers: list[Any] = [layer for key, layer in load(base, KINDS[name]).named_modules() if key.endswith("_proj")]
    assert planned.num_weights == sum(layer.in_features * layer.out_features for layer in layers)
    assert planned.num_bytes == sum(map(_layer_bytes, layers))


def _layer_bytes(layer: Any) -> int:
    weight = layer.weight
    if weight.dtype == torch.int8:
        return int(weight.nbytes + weight.SCB.nbytes)
    state = weight.quant_state
    nested = state.state2.absmax.nbytes if state.nested else 0
    return int(weight.nbytes + state.absmax.nbytes + nested)


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_an_adapter_learns_and_comes_back(name: str, checkpointing: bool, base: Path, tmp_path: Path) -> None:
    adapted = start_adapter(load(base, KINDS[name]), LORA, str(base))
    assert {weight.dtype for weight in trained(adapted).values()} == {torch.float32}
    frozen = {key: w.clone() for key, w in adapted.named_parameters() if not w.requires_grad}
    if checkpointing:
        adapted.activation_checkpointing_enable()
    losses = train(adapted)
    assert losses == sorted(losses, reverse=True)
    assert all(w.grad is None for w in adapted.parameters() if not w.requires_grad)
    assert all(torch.equal(w, frozen[key]) for key, w in adapted.named_parameters() if key in frozen)
    assert all("lora_B" not in key or w.any() for key, w in trained(adapted).items())
    save_adapter(adapted, trained(adapted), tmp_path)
    loaded = load_adapter(load(base, KINDS[name]), tmp_path, is_trainable=False)
    assert torch.equal(logits(loaded), logits(adapted))
    assert torch.equal(logits(resume_adapter(load(base, KINDS[name]), LORA, tmp_path)), logits(adapted))


@pytest.mark.parametrize("name", ["nf4", "nf4, single", "fp4"])
def test_an_evaluation_leaves_the_weights_as_they_are(name: str, base: Path) -> None:
    """Also on processors for which bitsandbytes has a layout of their own, through which nothing can be learned."""
    model = start_adapter(load(base, KINDS[name]), LORA, str(base))
    before = {key: w.clone() for key, w in model.named_parameters() if not w.requires_grad}
    logits(model)
    after = {key: w for key, w in model.named_parameters() if not w.requires_grad}
    assert all(torch.equal(w, after[key]) for key, w in before.items())
    losses = train(model)
    assert losses == sorted(losses, reverse=True)
    assert all(weight.any() for weight in trained(model).values())


@pytest.mark.slow
def test_dora_over_4_bits(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(use_dora=True, target_modules=("q_proj",))
    adapted = start_adapter(load(base, KINDS["nf4"]), lora, str(base))
    losses = train(adapted)
    assert losses[-1] < losses[0]
    save_adapter(adapted, trained(adapted), tmp_path)
    assert torch.equal(logits(load_adapter(load(base, KINDS["nf4"]), tmp_path, is_trainable=False)), logits(adapted))


def test_products_in_the_precision_of_the_job() -> None:
    settings = bitsandbytes_config(QuantizationConfig(type="fp4", double_quantization=False), torch.bfloat16)
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert (settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant) == ("fp4", False)


def test_experts_stay_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixtral().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        load(tmp_path, QuantizationConfig())
    assert caplog.messages == [
        "quantization: 4 parameters such as model.layers.0.mlp.experts.gate_up_proj, 0.0 billion numbers, are no "
        "linear layers and stay in the job's precision"
    ]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmforge.models.quantized.find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        bitsandbytes_config(QuantizationConfig(), torch.float32)
    assert str(caught.value) == (
        "quantization: needs the package bitsandbytes, which is not installed here; "
        "pip install llmforge[quantization] on every node, or remove the key"
    )

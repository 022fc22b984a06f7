"""Parameters counted from `config.json`, against the models of `transformers` and the adapters of PEFT."""

from __future__ import annotations

from itertools import product
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmforge.config.model import LoraConfig
from llmforge.config.model_shape import ModelShape, count_adapter_parameters, read_model_shape

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with heads of another size": {"model_type": "llama", "head_dim": 24},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral"},
    "granite": {"model_type": "granite", "tie_word_embeddings": True},
    "granite with biases": {"model_type": "granite", "attention_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 with biases": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "phi3": {"model_type": "phi3"},
    "gemma": {"model_type": "gemma"},
    "gemma2": {"model_type": "gemma2"},
    "gemma2 with heads of another size": {"model_type": "gemma2", "head_dim": 16},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma3, not tied": {"model_type": "gemma3_text", "tie_word_embeddings": False},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear"},
    "by name": {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    "by the end of a name": {"target_modules": ["self_attn.o_proj", "down_proj"]},
    "by an expression": {"target_modules": r".*\.[02]\.mlp\.(up|down)_proj"},
    "in some layers": {"target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "in one layer": {"target_modules": ["k_proj"], "layers_to_transform": 1},
    "but for some": {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "ranks of their own": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5, "^model.layers.0.self_attn.v_proj": 7},
    },
    "with a bias": {"target_modules": ["o_proj"], "lora_bias": True},
    "with whole layers": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "with one whole layer": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
}
NOT_COUNTED: dict[str, dict[str, Any]] = {
    "biases": {"target_modules": "all-linear", "bias": "all"},
    "norms": {"target_modules": "all-linear", "modules_to_save": ("norm",)},
    "single tokens": {"target_modules": "all-linear", "trainable_token_indices": (1, 2)},
    "parameters": {"target_parameters": ("mlp.experts",)},
    "nothing chosen": {},
}


def build(config: dict[str, Any]) -> torch.nn.Module:
    """The model of `transformers`, without memory for its weights."""
    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **settings)
        )
    return model


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = read_model_shape(config)
    assert shape is not None
    return shape


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_every_family(family: str) -> None:
    config = TINY | FAMILIES[family]
    model = build(config)
    shape = shape_of(config)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    counted = {linear.name: (linear.num_inputs, linear.num_outputs) for linear in shape.linear_layers()}
    built = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert counted == built


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_says_the_same(family: str) -> None:
    """`config.json` as a model is saved, with every default filled in."""
    config = TINY | FAMILIES[family]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    saved = AutoConfig.for_model(config["model_type"], **settings).to_dict()
    assert shape_of(saved).num_parameters == shape_of(config).num_parameters


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # Llama has no biases
@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        *product(("llama", "qwen2"), ADAPTERS),
        *product(("phi3",), ("all linear layers", "by the end of a name", "DoRA")),
    ],
)
def test_parameters_of_adapters(family: str, adapter: str) -> None:
    config = TINY | FAMILIES[family]
    with torch.device("meta"):
        model = peft.get_peft_model(build(config), peft.LoraConfig(**ADAPTERS[adapter]), low_cpu_mem_usage=True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count_adapter_parameters(shape_of(config), LoraConfig.model_validate(ADAPTERS[adapter])) == trained


@pytest.mark.parametrize("adapter", NOT_COUNTED)
def test_adapters_that_are_not_counted(adapter: str) -> None:
    shape = shape_of(TINY | {"model_type": "llama"})
    assert count_adapter_parameters(shape, LoraConfig.model_validate(NOT_COUNTED[adapter])) is None


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        # As the model cards say: 8 030 261 248, 7 248 023 552 (v0.3), 494 032 768, 2 614 341 888, 3 821 079 552.
        (("llama", 128_256, 4096, 14_336, 32, 32, 8, {}), 8_030_261_248),
        (("mistral", 32_768, 4096, 14_336, 32, 32, 8, {}), 7_248_023_552),
        (("qwen2", 151_936, 896, 4864, 24, 14, 2, {"tie_word_embeddings": True}), 494_032_768),
        (("gemma2", 256_000, 2304, 9216, 26, 8, 4, {"head_dim": 256}), 2_614_341_888),
        (("phi3", 32_064, 3072, 8192, 32, 32, 32, {}), 3_821_079_552),
    ],
    ids=["llama-3.1-8b", "mistral-7b-v0.3", "qwen2.5-0.5b", "gemma-2-2b", "phi-3-mini"],
)
def test_published_models(config: tuple[Any, ...], num_parameters: int) -> None:
    *sizes, more = config
    names = (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )  # fmt: skip
    assert shape_of(dict(zip(names, sizes, strict=True)) | more).num_parameters == num_parameters


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "mixtral"} | TINY, {"model_type": "llama", "vocab_size": 9}, TINY | {"hidden_size": "big"}],
)
def test_what_is_not_known_is_not_guessed(config: dict[str, Any]) -> None:
    assert read_model_shape(config) is None


def test_heads_share_keys_only_where_the_config_says_so() -> None:
    config = {key: value for key, value in TINY.items() if key != "num_key_value_heads"} | {"model_type": "llama"}
    assert shape_of(config).num_key_value_heads == TINY["num_attention_heads"]

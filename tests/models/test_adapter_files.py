"""Adapters: every key does what it says, what is saved fits the published base, and a training goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from llmforge.config.model import HubModel, LoraConfig
from llmforge.errors import ModelError
from llmforge.models.adapter import add_adapter
from llmforge.models.adapter_files import continue_adapter, load_adapter, resume_adapter, save_adapter, start_adapter
from llmforge.models.folder import adapter_folder
from tests.models.tiny import adapted_layers, llama, load, logits, mixtral, qwen2_moe, train, trained

pytestmark = pytest.mark.slow

ATTENTION = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    return folder


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


ADAPTERS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*\.1\..*[qk]_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ("up_proj", "layers.0.self_attn.q_proj")},
    "one layer": {"target_modules": "all-linear", "layers_to_transform": 1},
    "layers by an unusual name": {"target_modules": ATTENTION, "layers_to_transform": (0,), "layers_pattern": "layers"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random": {"init_lora_weights": False},
    "other ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "whole layers": {"modules_to_save": ("lm_head",)},
    "embeddings": {"target_modules": ("embed_tokens", "q_proj")},
    "the output layer": {"target_modules": ("lm_head", "q_proj")},
    "single tokens": {"trainable_token_indices": (3, 5)},
    "parameters": {"target_modules": None, "target_parameters": ("mlp.up_proj.weight",)},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by iteration": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "pissa with rsLoRA": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa with DoRA": {"init_lora_weights": "pissa", "use_dora": True},
    "olora with other ranks": {
        "init_lora_weights": "olora",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 2},
    },
}


QUICK = ("all-linear", "pissa")
"""The others take half a minute together."""
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ADAPTERS]


def lora_of(name: str) -> LoraConfig:
    return LoraConfig(**{"target_modules": ATTENTION, "r": 4, "lora_alpha": 8, **ADAPTERS[name]})


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_adapter_fits_the_published_base(name: str, base: Path, tmp_path: Path) -> None:
    """Loaded by plain PEFT over the base weights as they were, it answers as the trained model did."""
    adapted = start_adapter(load(base), lora_of(name), str(base))
    losses = train(adapted)
    assert losses[-1] < losses[0]
    save_adapter(adapted, trained(adapted), tmp_path)
    loaded = PeftModel.from_pretrained(load(base), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(adapted), atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits(loaded), logits(load(base)), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_goes_on_exactly(name: str, base: Path, tmp_path: Path) -> None:
    lora = lora_of(name)
    adapted = start_adapter(load(base), lora, str(base))
    train(adapted, 2)
    save_adapter(adapted, trained(adapted), tmp_path)
    resumed = resume_adapter(load(base), lora, tmp_path)
    before, after = trained(adapted), trained(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(logits(resumed), logits(adapted))
    (tmp_path / "again").mkdir()
    save_adapter(resumed, trained(resumed), tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_part_of_the_base_is_saved_with_twice_the_rank(name: str, base: Path, tmp_path: Path) -> None:
    adapted = start_adapter(load(base), lora_of(name), str(base))
    torch.testing.assert_close(logits(adapted), logits(load(base)), atol=1e-4, rtol=1e-4)
    weight = "model.layers.0.self_attn.q_proj"
    assert not torch.allclose(
        adapted.get_submodule(f"base_model.model.{weight}").base_layer.weight,
        load(base).get_submodule(weight).weight,
        atol=1e-2,
    )
    save_adapter(adapted, trained(adapted), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key_a, key_b = (f"base_model.model.{weight}.lora_{side}.weight" for side in "AB")
    assert torch.count_nonzero(tensors[key_b] @ tensors[key_a] > 1e-5) == 0  # nothing is learnt yet


def test_an_adapter_for_a_changed_base_is_refused(base: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    peft.get_peft_model(load(base), config).save_pretrained(tmp_path)
    assert refusal(lambda: load_adapter(load(base), tmp_path, is_trainable=False)) == (
        f"{tmp_path}: the adapter was saved with init_lora_weights pissa, so it fits a base model that was changed "
        "before training and not the published one; save it with PEFT's path_initial_model_for_weight_conversion"
    )


SCALES = [({}, 2.0), ({"use_rslora": True}, 4.0), ({"alpha_pattern": {"q_proj": 1}}, 0.25)]


@pytest.mark.parametrize(("more", "scale"), SCALES)
def test_the_scale_of_an_adapter(more: dict[str, Any], scale: float, base: Path) -> None:
    lora = LoraConfig(target_modules=ATTENTION, r=4, lora_alpha=8, **more)
    assert add_adapter(load(base), lora, "b").base_model.model.model.layers[0].self_attn.q_proj.scaling == {
        "default": scale
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "names"),
    [
        ({"bias": "none"}, {"lora_A", "lora_B"}),
        ({"bias": "all"}, {"lora_A", "lora_B", "q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"bias": "lora_only"}, {"lora_A", "lora_B", "q_proj", "v_proj"}),
        ({"use_dora": True}, {"lora_A", "lora_B", "lora_magnitude_vector"}),
        ({"modules_to_save": ("lm_head",)}, {"lora_A", "lora_B", "modules_to_save"}),
        ({"trainable_token_indices": (3,)}, {"lora_A", "lora_B", "trainable_tokens_delta"}),
    ],
)
def test_what_is_trained(lora: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    llama(attention_bias=True).save_pretrained(tmp_path / "base")
    with_biases = load(tmp_path / "base")
    adapted = start_adapter(with_biases, LoraConfig(target_modules=ATTENTION, **lora), str(tmp_path / "base"))
    kinds = {name.replace(".base_layer", "").replace(".default", "").split(".")[-2] for name in trained(adapted)}
    if "trainable_token_indices" in lora:
        kinds = {"trainable_tokens_delta" if kind == "token_adapter" else kind for kind in kinds}
    assert kinds == names
    train(adapted)
    save_adapter(adapted, trained(adapted), tmp_path)
    loaded = load_adapter(load(tmp_path / "base"), tmp_path, is_trainable=False)
    torch.testing.assert_close(logits(loaded), logits(adapted))


@pytest.mark.parametrize("make", [mixtral, qwen2_moe], ids=["mixtral", "qwen2_moe"])
def test_routers_and_experts_get_no_adapter_by_default(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    adapted = add_adapter(make(), LoraConfig(target_modules="all-linear"), "b")
    assert adapted_layers(adapted) == {f"self_attn.{name}_proj" for name in "qkvo"}
    assert caplog.messages == [
        "lora_config: target_modules all-linear means k_proj, o_proj, q_proj, v_proj for this model; its experts are "
        "parameters and get no adapter unless target_parameters names them: mlp.experts.down_proj, "
        "mlp.experts.gate_up_proj"
    ]


def test_a_layer_with_the_name_of_an_expert() -> None:
    lora = LoraConfig(target_modules=("q_proj", "shared_expert.up_proj"))
    assert refusal(lambda: add_adapter(qwen2_moe(), lora, "b")) == (
        "lora_config.target_modules: found shared_expert.up_proj, which PEFT takes for the experts of this model; "
        "remove it, and to adapt the experts name them in target_parameters: mlp.experts.down_proj, "
        "mlp.experts.gate_up_proj"
    )


EXPERTS = {"target_modules": ("q_proj",), "target_parameters": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")}


@pytest.mark.parametrize("lora", [{"target_modules": "all-linear"}, EXPERTS], ids=["attention", "experts"])
def test_an_adapter_of_a_mixture_of_experts(lora: dict[str, Any], tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path / "base")
    adapted = start_adapter(load(tmp_path / "base"), LoraConfig(**lora), str(tmp_path / "base"))
    losses = train(adapted, learning_rate=0.05)
    assert losses[-1] < losses[0]
    save_adapter(adapted, trained(adapted), tmp_path)
    resumed = resume_adapter(load(tmp_path / "base"), LoraConfig(**lora), tmp_path)
    assert torch.equal(logits(resumed), logits(adapted))
    assert not torch.allclose(logits(resumed), logits(load(tmp_path / "base")), atol=1e-3)


def test_a_rank_for_a_layer_without_adapter(base: Path) -> None:
    lora = LoraConfig(target_modules=ATTENTION, rank_pattern={"k_proj": 2})
    assert refusal(lambda: add_adapter(load(base), lora, "b")).startswith(
        "lora_config: The following rank_pattern keys did not match any targeted module and were ignored: ['k_proj']; "
    )


def test_an_exclusion_that_excludes_nothing(base: Path) -> None:
    lora = LoraConfig(target_modules=ATTENTION, exclude_modules=("gone",))
    assert refusal(lambda: add_adapter(load(base), lora, "b")).startswith(
        "lora_config: You have passed exclude_modules={'gone'} but no modules were excluded. "
    )


SHARED: list[dict[str, Any]] = [
    {"modules_to_save": ("embed_tokens",), "ensure_weight_tying": True},
    {"trainable_token_indices": (3,)},
]


@pytest.mark.slow
@pytest.mark.parametrize("more", SHARED)
def test_a_shared_matrix_stays_shared(more: dict[str, Any], tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=("q_proj",), **more)
    adapted = start_adapter(load(tmp_path / "base"), lora, str(tmp_path / "base"))
    losses = train(adapted)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        output = adapted.get_output_embeddings()(torch.eye(64)).T
        torch.testing.assert_close(adapted.get_input_embeddings()(torch.arange(64)), output)
    save_adapter(adapted, trained(adapted), tmp_path)
    assert torch.equal(logits(resume_adapter(load(tmp_path / "base"), lora, tmp_path)), logits(adapted))


def test_a_parameter_that_is_not_there(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=("q_proj",), target_parameters=("experts.w1",))
    message = refusal(lambda: add_adapter(mixtral(), lora, "b"))
    assert message.startswith("lora_config.target_parameters: no parameter is called experts.w1; this model has ")
    assert "mlp.experts.gate_up_proj" in message


def test_an_adapter_is_continued(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules="all-linear", exclude_modules=("o_proj",), r=4, modules_to_save=("lm_head",))
    first = start_adapter(load(base), lora, str(base))
    train(first)
    save_adapter(first, trained(first), tmp_path)
    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    same = lora.model_copy(update={"target_modules": names, "exclude_modules": None, "lora_dropout": 0.5})
    second = continue_adapter(load(base), same, tmp_path, "base")
    assert torch.equal(logits(second), logits(first))
    assert trained(second).keys() == trained(first).keys()
    assert second.peft_config["default"].lora_dropout == 0.5
    assert second.peft_config["default"].base_model_name_or_path == "base"


def test_an_adapter_of_parameters_is_continued(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_parameters=("mlp.up_proj.weight",), init_lora_weights=False)
    first = start_adapter(load(base), lora, str(base))
    save_adapter(first, trained(first), tmp_path)
    assert adapted_layers(first) == {"mlp.up_proj"}
    assert torch.equal(logits(continue_adapter(load(base), lora, tmp_path, "base")), logits(first))


def test_an_adapter_other_than_the_job_describes(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=("q_proj",), r=4, use_dora=True)
    first = start_adapter(load(base), lora, str(base))
    save_adapter(first, trained(first), tmp_path)
    asked = LoraConfig(target_modules=("k_proj", "q_proj"), r=8, lora_alpha=16)
    assert refusal(lambda: continue_adapter(load(base), asked, tmp_path, "base")) == (
        f"{tmp_path}: the adapter is another one than lora_config describes: r is 4 there and 8 in lora_config; "
        "lora_alpha is 8 there and 16 in lora_config; use_dora is True there and False in lora_config; "
        "only lora_config has 2 layers such as model.layers.0.self_attn.k_proj; "
        "write the adapter's own values into lora_config (lora_dropout is free)"
    )


def test_an_adapter_of_another_kind(base: Path, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    peft.get_peft_model(load(base), config).save_pretrained(tmp_path)
    message = f"{tmp_path}: found an adapter of peft_type PeftType.IA3, allowed is LORA"
    assert refusal(lambda: load_adapter(load(base), tmp_path, is_trainable=True)) == message


def test_an_adapter_of_the_hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, in which its client looks where it cannot ask the hub."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    first = start_adapter(load(base), LoraConfig(target_modules=("q_proj",)), str(base))
    save_adapter(first, trained(first), snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = adapter_folder(HubModel(repo_id="owner/name"), tmp_path)
    assert folder == snapshot
    loaded = continue_adapter(load(base), LoraConfig(target_modules=("q_proj",)), folder, "base")
    assert torch.equal(logits(loaded), logits(first))
    assert refusal(lambda: adapter_folder(HubModel(repo_id="owner/gone"), tmp_path)).startswith(
        "owner/gone: neither a local folder nor to be had from the Hugging Face hub ("
    )

"""Tokenizers, base models and adapters: loaded exactly, or refused in words that name the folder and the layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.models.adapter import add_adapter, linear_layer_names
from llmforge.models.adapter_files import load_adapter
from llmforge.models.load import load_base_model, load_tokenizer

LAYERS = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
LAYERS_THERE = f"the linear layers of this model are {LAYERS}; all-linear means all but the output layer"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


def load(architecture: Path, weights: Path | None = None) -> PreTrainedModel:
    return load_base_model(architecture, weights or architecture, precision="fp32")


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make_model(name, **changes)`: the folder of a tiny Llama with random weights."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str, **changes: Any) -> Path:
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        if not (root / name).exists():
            LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).save_pretrained(root / name)
        return root / name

    return make


@pytest.fixture
def base(make_model: Make) -> Path:
    return make_model("base")


def changed(folder: Path, target: Path, **files: str | bytes | None) -> Path:
    """A copy of a folder in which some files are other ones; None removes a file."""
    shutil.copytree(folder, target)
    for stem, content in files.items():
        path = next(path for path in target.iterdir() if path.stem == stem)
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return target


TEXTS = ["Once upon a time", " <s>[INST] hi [/INST]", "<s>[INST] hi </s><s>[INST]", "  two  spaces\n\n", "é😀中"]


def test_a_tokenizer_gives_the_ids_of_its_file(material: Path, tmp_path: Path) -> None:
    """Whatever class the configuration names: that of Llama would rebuild it and give other ids."""
    folder = material / "models" / "stories260K-hf"
    shutil.copy(folder / "tokenizer.json", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer"}))
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for tokenizer in (load_tokenizer(folder), load_tokenizer(tmp_path)):
        for text in TEXTS:
            assert (
                tokenizer.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False).ids
            )


@pytest.mark.slow
def test_the_trap_of_a_rebuilt_llama_tokenizer(material: Path) -> None:
    tokenizer = load_tokenizer(material / "tokenizers" / "llama2-hf")
    assert tokenizer.encode("<s>[INST]", add_special_tokens=False) == [1, 518, 25580, 29962]
    assert tokenizer.eos_token_id == 2


def test_no_tokenizer(tmp_path: Path) -> None:
    message = f"{tmp_path}: no tokenizer.json; llmforge needs the model's fast tokenizer"
    assert refusal(lambda: load_tokenizer(tmp_path)) == message


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_base_model_is_what_was_saved(precision: Any, dtype: torch.dtype, material: Path) -> None:
    folder = material / "models" / "stories260K-hf"
    model = load_base_model(folder, folder, precision=precision)
    expected = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        assert weight.dtype == dtype
        assert torch.equal(weight, expected[name].to(dtype)), name


def test_weights_from_another_folder(base: Path, tmp_path: Path) -> None:
    other = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.model.norm.weight.fill_(7)
    other.save_pretrained(tmp_path / "other")
    assert torch.equal(load(base, tmp_path / "other").model.norm.weight, torch.full((32,), 7.0))


def test_weights_of_another_architecture(base: Path, make_model: Make) -> None:
    deep, wide, words = (
        make_model("deep", num_hidden_layers=3),
        make_model("wide", hidden_size=48),
        make_model("words", vocab_size=65),
    )
    assert refusal(lambda: load(deep, base)) == (
        f"{base}: 9 weights are missing for {deep}, the first is model.layers.2.input_layernorm.weight"
    )
    assert refusal(lambda: load(base, deep)) == (
        f"{deep}: 9 weights have no place in {base}, the first is model.layers.2.input_layernorm.weight; "
        "name weights of the same architecture"
    )
    assert refusal(lambda: load(base, wide)) == (
        f"{wide}: 21 weights have another shape than in {base}, the first is lm_head.weight: (64, 48), "
        "expected (64, 32); name weights of the same architecture"
    )
    assert refusal(lambda: load(base, words)) == (
        f"{words}: 2 weights have another shape than in {base}, the first is lm_head.weight: (65, 32), "
        "expected (64, 32); name weights of the same architecture"
    )


def test_weights_that_cannot_be_read(base: Path, tmp_path: Path) -> None:
    none = changed(base, tmp_path / "none", model=None)
    assert refusal(lambda: load(base, none)) == (
        f"{none}: the weights cannot be loaded as llama: Error no file named model.safetensors, or pytorch_model.bin, "
        f"found in directory {none}."
    )
    cut = changed(base, tmp_path / "cut", model=(base / "model.safetensors").read_bytes()[:-1])
    assert refusal(lambda: load(base, cut)).startswith(
        f"{cut}: the weights cannot be loaded as llama: Error while deserializing header: incomplete metadata"
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "It looks like the config file at '{folder}/config.json' is not a valid JSON file."),
        ("{}", "Unrecognized model in {folder}. Should have a `model_type` key in its config.json."),
        (
            '{"model_type": "odd"}',
            "The checkpoint you are trying to load has model type `odd` but Transformers does not",
        ),
    ],
)
def test_no_architecture(config: str, problem: str, base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "odd", config=config)
    expected = f"{folder}: no architecture can be read from config.json: {problem.format(folder=folder)}"
    assert refusal(lambda: load(folder, base)).startswith(expected)


def test_names_of_linear_layers(base: Path) -> None:
    assert linear_layer_names(load(base)) == LAYERS.split(", ")


def trainable(model: PeftModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained(base: Path) -> None:
    model = load(base)
    tokens = torch.arange(10)[None]
    before = model(tokens).logits
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=("q_proj", "down_proj"), rank_pattern={"down_proj": 5})
    adapted = add_adapter(model, lora, "owner/name")
    assert torch.equal(adapted(tokens).logits, before)
    assert len(trainable(adapted)) == 8
    assert all(".lora_" in name for name in trainable(adapted))
    shapes = {parameter.shape for parameter in adapted.parameters() if parameter.requires_grad}
    assert shapes == {(3, 32), (32, 3), (5, 48), (32, 5)}
    config = adapted.peft_config["default"]
    assert (config.base_model_name_or_path, config.lora_alpha, config.r) == ("owner/name", 6, 3)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ("query",)}, f"lora_config.target_modules: no layer is called query; {LAYERS_THERE}"),
        (
            {"target_modules": ("q_proj", "k_porj", "proj")},
            f"lora_config.target_modules: no layer is called k_porj, proj; {LAYERS_THERE}",
        ),
        (
            {"target_modules": ("q_proj",), "modules_to_save": ("lm_haed",)},
            f"lora_config.modules_to_save: no layer is called lm_haed; {LAYERS_THERE}",
        ),
        (
            {"target_modules": "query.*"},
            "lora_config: Target modules query.* not found in the base model. Please check the target modules and "
            f"try again; {LAYERS_THERE}",
        ),
        (
            {"target_modules": ("q_proj",), "layers_to_transform": 9},
            "lora_config: Target modules {'q_proj'} not found in the base model. Please check the target modules and "
            f"try again. Note: You specified 'layers_to_transform': 9; {LAYERS_THERE}",
        ),
    ],
)
def test_layers_that_are_not_there(lora: dict[str, Any], message: str, base: Path) -> None:
    assert refusal(lambda: add_adapter(load(base), LoraConfig(**lora), "b")) == message


@pytest.mark.parametrize("names", [("self_attn.q_proj",), ("model.layers.1.self_attn.q_proj",), ("q_proj", "lm_head")])
def test_longer_names_of_layers(names: tuple[str, ...], base: Path) -> None:
    add_adapter(load(base), LoraConfig(target_modules=names), "b")


ADAPTERS = {
    "all layers": LoraConfig(target_modules="all-linear", use_rslora=True),
    "with a whole layer": LoraConfig(target_modules=("q_proj",), modules_to_save=("lm_head",)),
    "with dora": LoraConfig(target_modules=("v_proj", "o_proj"), use_dora=True),
    "with embeddings": LoraConfig(target_modules=("embed_tokens", "q_proj")),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("is_trainable", [False, True])
def test_an_adapter_comes_back(lora: LoraConfig, is_trainable: bool, base: Path, tmp_path: Path) -> None:
    adapted = add_adapter(load(base), lora, str(base))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path)
    loaded = load_adapter(load(base), tmp_path, is_trainable=is_trainable)
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded.eval()(tokens).logits, adapted.eval()(tokens).logits)
    assert trainable(loaded) == (trainable(adapted) if is_trainable else set())


@pytest.fixture(scope="module")
def adapter(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two layers of the base model."""
    folder, base = tmp_path_factory.mktemp("adapter"), make_model("base")
    add_adapter(load(base), LoraConfig(target_modules=("q_proj", "k_proj")), str(base)).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_an_adapter_of_another_base(adapter: Path, base: Path, make_model: Make, tmp_path: Path) -> None:
    deep, wide = make_model("deep", num_hidden_layers=3), make_model("wide", hidden_size=48)
    other = make_model("other", num_hidden_layers=1)
    assert refusal(lambda: load_adapter(load(deep), adapter, is_trainable=False)) == (
        f"{adapter}: the adapter was made for another base model: it lacks 4 weights, the first is "
        "base_model.model.model.layers.2.self_attn.k_proj.lora_A.weight"
    )
    assert refusal(lambda: load_adapter(load(other), adapter, is_trainable=True)) == (
        f"{adapter}: the adapter was made for another base model: the base model has no place for 4 weights, "
        "the first is base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
    )
    assert refusal(lambda: load_adapter(load(wide), adapter, is_trainable=False)) == (
        f"{adapter}: the adapter does not fit the base model: size mismatch for base_model.model.model.layers.0."
        "self_attn.q_proj.lora_A.default.weight: copying a param with shape torch.Size([8, 32]) from checkpoint, "
        "the shape in current model is torch.Size([8, 48])."
    )
    names = (adapter / "adapter_config.json").read_text().replace("q_proj", "query")
    elsewhere = changed(adapter, tmp_path / "elsewhere", adapter_config=names.replace("k_proj", "key"))
    message = refusal(lambda: load_adapter(load(base), elsewhere, is_trainable=False))
    assert message.startswith(f"{elsewhere}: the adapter does not fit the base model: Target modules {{'")
    assert message.endswith("} not found in the base model. Please check the target modules and try again.")


def test_what_is_no_adapter(adapter: Path, base: Path, tmp_path: Path) -> None:
    model = load(base)

    def found(folder: Path) -> str:
        return refusal(lambda: load_adapter(model, folder, is_trainable=False)).removeprefix(f"{folder}: ")

    expected = "expected a LoRA adapter as PEFT saves it"
    assert found(base) == f"no adapter_config.json; {expected}"
    none = changed(adapter, tmp_path / "none", adapter_model=None)
    assert found(none) == f"no adapter_model.safetensors; {expected}"
    cut = changed(adapter, tmp_path / "cut", adapter_model=b"cut")
    assert found(cut) == "the adapter does not fit the base model: Error while deserializing header: header too small"
    config = changed(adapter, tmp_path / "config", adapter_config="{}")
    assert found(config) == "found an adapter of peft_type None, allowed is LORA"

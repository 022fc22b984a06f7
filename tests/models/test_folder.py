"""What the small files of a model's folder say, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmforge.config.model import HubModel
from llmforge.errors import ModelError
from llmforge.models.folder import (
    ModelFacts,
    model_folder,
    read_eos_token,
    read_model_facts,
    read_tokenizer_json,
    read_tokenizer_template,
)

DAMAGED = "cut short, or a pointer of Git LFS? Fetch the file again"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1000\n"


@pytest.fixture
def stories(material: Path, tmp_path: Path) -> Path:
    """A copy of a real pretrained model that a test may damage."""
    return Path(
        shutil.copytree(material / "models" / "stories260K-hf", tmp_path / "stories", copy_function=shutil.copy)
    )


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", ["stories260K-hf", "stories260K-mistral-hf"])
def test_facts_of_a_real_model(name: str, material: Path) -> None:
    folder = material / "models" / name
    facts = read_model_facts(folder)
    assert (facts.context_length, facts.hidden_size, facts.num_parameters) == (512, 64, 260_032)
    assert facts.shape is not None and facts.shape.num_parameters == 260_032
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032


def test_sizes_of_the_text_part_of_a_model_with_more_parts(tmp_path: Path) -> None:
    text = {"max_position_embeddings": 4096, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 7, "text_config": text}))
    assert read_model_facts(tmp_path) == ModelFacts(context_length=4096, hidden_size=128, num_parameters=None)


def test_what_a_folder_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_model_facts(tmp_path) == ModelFacts(context_length=None, hidden_size=None, num_parameters=None)


def test_parameters_are_those_of_the_files_that_would_be_loaded(tmp_path: Path) -> None:
    """Publishers put the same weights beside them in another layout."""
    (tmp_path / "config.json").write_text("{}")
    shards = {
        "model-1.safetensors": {"a": torch.zeros(3, 5), "b": torch.zeros(())},
        "model-2.safetensors": {"c": torch.zeros(7)},
    }
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    save_file({"abc": torch.zeros(23)}, tmp_path / "consolidated.safetensors")
    assert read_model_facts(tmp_path).num_parameters is None
    index = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert read_model_facts(tmp_path).num_parameters == 3 * 5 + 1 + 7
    (tmp_path / "model-2.safetensors").unlink()
    assert read_model_facts(tmp_path).num_parameters is None


def test_the_tokenizer_is_read_as_it_stands(material: Path) -> None:
    folder = material / "models" / "stories260K-hf"
    assert read_tokenizer_json(folder) == (folder / "tokenizer.json").read_text(encoding="utf-8")


def added_token(content: str, **more: object) -> dict[str, object]:
    """As older versions of `transformers` write a special token."""
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **more}


ADDED = {"__type": "AddedToken", "special": True}
TOKENIZER_CONFIGS: dict[str, dict[str, object]] = {
    "strings": {
        "chat_template": "a",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": None,
        "add_bos_token": True,
    },
    "objects": {
        "chat_template": "a",
        "bos_token": added_token("<s>", **ADDED),
        "pad_token": added_token("</s>", **ADDED),
    },
    "other names": {
        "chat_template": "a",
        "image_token": "<unk>",
        "additional_special_tokens": ["<s>"],
        "extra_special_tokens": {"boi": "<s>", "eoi": "</s>"},
    },
    "named templates": {
        "chat_template": [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}],
        "eos_token": "</s>",
    },
    "a decoder": {"chat_template": "a", "bos_token": "<s>", "added_tokens_decoder": {"0": added_token("<unk>")}},
}
"""Forms in which publishers write the file."""


@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize("with_file", [False, True])
@pytest.mark.parametrize("name", TOKENIZER_CONFIGS)
def test_the_chat_template_is_the_one_of_transformers(
    name: str, with_file: bool, with_map: bool, stories: Path
) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENIZER_CONFIGS[name]}
    (stories / "tokenizer_config.json").write_text(json.dumps(config))
    if with_file:
        (stories / "chat_template.jinja").write_bytes("é\r\n{{ x }}".encode())
    if with_map:
        tokens = {"bos_token": added_token("</s>"), "eos_token": "<s>", "sep_token": "<unk>"}
        (stories / "special_tokens_map.json").write_text(json.dumps(tokens))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stories)
    found = read_tokenizer_template(stories)
    assert found is not None
    assert found.chat_template == tokenizer.get_chat_template() == ("é\n{{ x }}" if with_file else "a")
    assert dict(found.special_tokens) == tokenizer.special_tokens_map
    assert read_eos_token(stories) == tokenizer.eos_token


def test_a_tokenizer_without_chat_template(stories: Path) -> None:
    config = stories / "tokenizer_config.json"
    for without in ({}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}):
        config.write_text(json.dumps({"bos_token": "<s>", **without}))
        assert read_tokenizer_template(stories) is None
    assert read_eos_token(stories) is None
    config.unlink()
    assert read_tokenizer_template(stories) is None
    assert read_eos_token(stories) is None


def test_a_chat_template_beside_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found = read_tokenizer_template(tmp_path)
    assert found is not None and (found.chat_template, found.special_tokens) == ("{{ messages }}", ())


def test_damaged_tokenizer_configs(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(POINTER)
    assert refusal(lambda: read_tokenizer_template(tmp_path)) == (
        f"{config}: not JSON: Expecting value: line 1 column 1 (char 0); {DAMAGED}"
    )
    config.write_text("[]")
    assert refusal(lambda: read_tokenizer_template(tmp_path)) == f"{config}: expected a JSON object; {DAMAGED}"
    config.write_text('{"chat_template": 7}')
    assert refusal(lambda: read_tokenizer_template(tmp_path)) == (
        f"{config}: expected chat_template to be a text, or a list of {{name, template}}; {DAMAGED}"
    )


def test_missing_files(tmp_path: Path) -> None:
    assert refusal(lambda: read_model_facts(tmp_path)) == (
        f"{tmp_path}: no config.json; expected a Hugging Face model folder"
    )
    assert refusal(lambda: read_tokenizer_json(tmp_path)) == (
        f"{tmp_path}: no tokenizer.json; llmforge needs the model's fast tokenizer"
    )


def test_damaged_files(stories: Path) -> None:
    weights, config, tokenizer = (stories / name for name in ("model.safetensors", "config.json", "tokenizer.json"))
    whole = weights.read_bytes()
    for data, found in {
        POINTER.encode(): "no safetensors file",
        b"": "no safetensors file",
        whole[:1000]: "no safetensors file",
        (2).to_bytes(8, "little") + b"{]": "not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    }.items():
        weights.write_bytes(data)
        assert refusal(lambda: read_model_facts(stories)) == f"{weights}: {found}; {DAMAGED}"
    weights.write_bytes(whole)
    config.write_text('{"hidden_size": 64,')
    assert refusal(lambda: read_model_facts(stories)).startswith(f"{config}: not JSON: Expecting property name")
    config.write_text("[]")
    assert refusal(lambda: read_model_facts(stories)) == f"{config}: expected a JSON object; {DAMAGED}"
    tokenizer.write_text(POINTER)
    assert refusal(lambda: read_tokenizer_json(stories)) == (
        f"{tokenizer}: not JSON: Expecting value: line 1 column 1 (char 0); {DAMAGED}"
    )


@pytest.mark.parametrize("reference", ["./gone", "/gone/model", "~/model", "a/b/c"])
def test_no_such_folder(reference: str) -> None:
    message = f"{reference}: no such model folder; check the path, or name a model of the hub as owner/name"
    assert refusal(lambda: model_folder(reference, with_weights=False)) == message
    assert refusal(lambda: model_folder(HubModel(repo_id=reference), with_weights=True)) == message


def test_a_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_folder(str(tmp_path), with_weights=True) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert model_folder("owner/name", with_weights=False) == Path("owner/name")
    assert model_folder(HubModel(repo_id="owner/name"), with_weights=False) == Path("owner/name")


def test_a_name_that_the_hub_cannot_have() -> None:
    message = refusal(lambda: model_folder("no such name", with_weights=False))
    assert message.startswith("no such name: neither a local folder nor to be had from the Hugging Face hub (")
    assert message.endswith("check the name, the network, and for gated models HF_TOKEN in the environment")

"""Stops and sampling as Hugging Face files say them; `transformers` itself reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GenerationConfig as HuggingFaceGenerationConfig
from transformers import LlamaConfig, PreTrainedTokenizerFast

from llmforge.answers.stops import Stops
from llmforge.config.prompt_format import GenerationConfig
from llmforge.export.stopping import (
    hugging_face_generation,
    mark_ends,
    padding_id,
    served_generation,
)
from llmforge.inference.load import saved_end_of_sequence_ids
from tests.export.served import GENERATION
from tests.prompt.tokenizers import byte_tokenizer


def spelled(tokens: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def test_tokens_are_ids_and_all_else_is_text() -> None:
    stops = Stops(frozenset({7, 2}), ((8, 9), (5,)), ("###", "<8><9>"))
    served = served_generation(GenerationConfig(temperature=0.5, top_k=3, max_tokens=9), stops, spelled, pad_id=0)
    assert (served.stop_ids, served.stop_tokens) == ((2, 5, 7), ("<2>", "<5>", "<7>"))
    assert served.stop_texts == ("###", "<8><9>")
    assert served.sampling == {"temperature": 0.5, "top_k": 3}


def written(config: HuggingFaceGenerationConfig, folder: Path) -> dict[str, object]:
    config.save_pretrained(folder)
    read = json.loads((folder / "generation_config.json").read_text())
    assert HuggingFaceGenerationConfig.from_pretrained(folder).to_dict() == config.to_dict()
    return {name: value for name, value in read.items() if name != "transformers_version"}


def test_a_greedy_job(tmp_path: Path) -> None:
    config = hugging_face_generation(replace(GENERATION, temperature=0.0))
    expected = {"do_sample": False, "eos_token_id": [2, 128009], "max_new_tokens": 64, "pad_token_id": 0}
    assert written(config, tmp_path) == expected


def test_a_job_that_samples(tmp_path: Path) -> None:
    assert written(hugging_face_generation(replace(GENERATION, min_p=0.1, pad_id=None)), tmp_path) == {
        "do_sample": True,
        "eos_token_id": [2, 128009],
        "max_new_tokens": 64,
        "min_p": 0.1,
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 0.9,
    }


@pytest.mark.parametrize(("stop_ids", "expected"), [((2, 9), [2, 9]), ((2,), 2), ((), None)])
def test_the_configuration_of_the_model(stop_ids: tuple[int, ...], expected: object) -> None:
    config = LlamaConfig(eos_token_id=1, pad_token_id=5)
    mark_ends(config, replace(GENERATION, stop_ids=stop_ids))
    assert (config.eos_token_id, config.pad_token_id) == (expected, 0)


def test_ends_and_padding_of_a_base_model(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(["</s>", "<pad>"]), eos_token="</s>")
    end = tokenizer.eos_token_id
    LlamaConfig(eos_token_id=[3, 4], pad_token_id=-1).save_pretrained(tmp_path)
    assert saved_end_of_sequence_ids(tmp_path, tokenizer) == {3, 4, end}
    assert padding_id(tmp_path, tokenizer) is None
    HuggingFaceGenerationConfig(eos_token_id=6).save_pretrained(tmp_path)
    assert saved_end_of_sequence_ids(tmp_path, tokenizer) == {6, end}
    tokenizer.pad_token = "<pad>"
    assert padding_id(tmp_path, tokenizer) == tokenizer.convert_tokens_to_ids("<pad>")

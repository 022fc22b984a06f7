"""New tokens of a tokenizer, and labels that become such: their ids, and what they change of other texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from llmforge.dataset.added_tokens import added_tokens, with_added_tokens
from llmforge.dataset.labels import find_label_tokens, labelled_tokenizer
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ModelError
from llmforge.prompt.messages import Conversation, Message
from llmforge.prompt.render import render
from tests.prompt.formats import LLAMA_2, LLAMA_3
from tests.prompt.tokenizers import byte_tokenizer, tokenizer_json

LABELS = ("[[2]]", "[[1]]")


@pytest.mark.parametrize("name", ["gpt2-hf", "llama2-hf"])
def test_ids_follow_the_last_in_the_order_given(name: str, material: Path) -> None:
    text = tokenizer_json(material / "tokenizers" / name)
    reference = Tokenizer.from_str(text)
    size = reference.get_vocab_size(with_added_tokens=True)
    extended = with_added_tokens(text, LABELS)
    assert added_tokens(text, extended) == {"[[2]]": size, "[[1]]": size + 1}
    found = Tokenizer.from_str(extended)
    reference.add_special_tokens([AddedToken(label, normalized=False) for label in LABELS])
    for sample in ("yes[[1]] no", "Is it [[2]]?\n", "a plain text [[3]]"):
        assert found.encode(sample).ids == reference.encode(sample).ids
    assert with_added_tokens(text, ()) is text


def test_a_vocabulary_with_gaps_takes_no_new_tokens() -> None:
    description = json.loads(byte_tokenizer(()).to_str())
    words = description["model"]["vocab"]
    description["model"]["vocab"] = {word: 256 if number == 0 else number for word, number in words.items()}
    with pytest.raises(ModelError, match=r"cannot take 'a label' as new tokens.*without gaps"):
        with_added_tokens(json.dumps(description), ["a label"])


def test_labels_of_several_tokens_become_one_and_stay_text_in_messages(material: Path) -> None:
    text = tokenizer_json(material / "models" / "stories260K-hf")
    extended = labelled_tokenizer(LABELS, LLAMA_3, text)
    tokenizer = SegmentTokenizer(extended)
    assert find_label_tokens(LABELS, LLAMA_3, tokenizer) == (512, 513)
    row = Conversation((Message("user", "Is it [[2]]?"), Message("assistant", "[[2]]")))
    segments = render(row, LLAMA_3, special_tokens=tokenizer.special_tokens, task="classification")
    ids = tokenizer.encode_prompt(segments)
    assert ids.count(512) == 1 and ids[-1] == 512
    assert labelled_tokenizer(LABELS, LLAMA_3, extended) == extended  # that of a checkpoint


def test_only_labels_that_are_several_tokens_are_added(material: Path) -> None:
    text = tokenizer_json(material / "tokenizers" / "gpt2-hf")
    extended = labelled_tokenizer(("safe", "very harmful"), LLAMA_3, text)
    assert added_tokens(text, extended) == {"very harmful": 50257}


def test_nothing_is_added_where_the_model_would_have_to_write_something_first(material: Path) -> None:
    text = tokenizer_json(material / "tokenizers" / "llama2-hf")
    assert labelled_tokenizer(LABELS, LLAMA_2, text) == text

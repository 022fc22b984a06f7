"""Make the material of `job_configs/quickstart.yaml`: python scripts/make_quickstart.py FOLDER

In: nothing but this file. Out, the same bytes at every run:

    FOLDER/data/train.jsonl, valid.jsonl   conversations about capitals, in OpenAI's messages format
    FOLDER/model/                          a Llama of one million random weights, with a tokenizer made for the data

Every capital is asked for in several wordings; of each, one wording is kept out of the training file and stands in the
validation file. So a falling validation loss shows that the model has learnt the facts and not the sentences. Some
conversations have a system message that changes the answer, some go on with a second question.

This program knows nothing of llmforge: what it writes is what a user would bring.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import logging as transformers_logging

SEED = 20
VOCABULARY_SIZE = 1000  # at most; this text holds fewer pairs worth a token
CONTEXT_LENGTH = 256

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
END_OF_TURN = "<|eot_id|>"
SPECIAL_TOKENS = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN)
# Where Llama 3 cuts text into words before it merges bytes.
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CAPITALS = (
    ("Argentina", "Buenos Aires"),
    ("Armenia", "Yerevan"),
    ("Australia", "Canberra"),
    ("Austria", "Vienna"),
    ("Belgium", "Brussels"),
    ("Brazil", "Brasília"),
    ("Bulgaria", "Sofia"),
    ("Cameroon", "Yaoundé"),
    ("Canada", "Ottawa"),
    ("Chile", "Santiago"),
    ("China", "Beijing"),
    ("Colombia", "Bogotá"),
    ("Croatia", "Zagreb"),
    ("Cuba", "Havana"),
    ("Denmark", "Copenhagen"),
    ("Egypt", "Cairo"),
    ("Estonia", "Tallinn"),
    ("Ethiopia", "Addis Ababa"),
    ("Finland", "Helsinki"),
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Ghana", "Accra"),
    ("Greece", "Athens"),
    ("Hungary", "Budapest"),
    ("Iceland", "Reykjavik"),
    ("India", "New Delhi"),
    ("Indonesia", "Jakarta"),
    ("Ireland", "Dublin"),
    ("Italy", "Rome"),
    ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"),
    ("Latvia", "Riga"),
    ("Mexico", "Mexico City"),
    ("Mongolia", "Ulaanbaatar"),
    ("Morocco", "Rabat"),
    ("Nepal", "Kathmandu"),
    ("Norway", "Oslo"),
    ("Peru", "Lima"),
    ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"),
    ("Romania", "Bucharest"),
    ("Serbia", "Belgrade"),
    ("Slovenia", "Ljubljana"),
    ("Spain", "Madrid"),
    ("Sweden", "Stockholm"),
    ("Thailand", "Bangkok"),
    ("Turkey", "Ankara"),
    ("Vietnam", "Hanoi"),
)
WORDINGS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "Tell me the capital of {country}.",
)
ANSWER = "The capital of {country} is {capital}."
SHORT_ANSWER_SYSTEM = "Answer with the name of the city only."
SHORT_ANSWER = "{capital}."
NEXT_QUESTION = "And of {country}?"

Message = dict[str, str]


def make_quickstart(folder: Path) -> None:
    """Write the data and the model below `folder`, over what an earlier run left there."""
    train, valid = list(_training_conversations()), list(_validation_conversations())
    random.Random(SEED).shuffle(train)
    _write_conversations(folder / "data" / "train.jsonl", train)
    _write_conversations(folder / "data" / "valid.jsonl", valid)
    tokenizer = _train_tokenizer(message["content"] for conversation in train for message in conversation)
    _write_tokenizer(folder / "model", tokenizer)
    _write_model(folder / "model", tokenizer)


def _training_conversations() -> Iterator[list[Message]]:
    """Every fact in all wordings but its held-out one; in two of them with short answers, too; and second questions."""
    for fact in range(len(CAPITALS)):
        held_out = _held_out_wording(fact)
        known = [wording for wording in range(len(WORDINGS)) if wording != held_out]
        for wording in known:
            yield _exchange(fact, wording)
        for wording in known[:2]:
            yield _short(fact, wording)
        if fact % 2 == 0:
            yield _two_exchanges(fact, known[fact // 2 % len(known)], next_fact=(fact + 11) % len(CAPITALS))


def _validation_conversations() -> Iterator[list[Message]]:
    """Every fact once in the wording that training has not seen for it: plain, short, or with another follow-up."""
    for fact in range(len(CAPITALS)):
        match fact % 6:
            case 1:
                yield _short(fact, _held_out_wording(fact))
            case 4:
                yield _two_exchanges(fact, _held_out_wording(fact), next_fact=(fact + 23) % len(CAPITALS))
            case _:
                yield _exchange(fact, _held_out_wording(fact))


def _held_out_wording(fact: int) -> int:
    return fact % len(WORDINGS)


def _exchange(fact: int, wording: int) -> list[Message]:
    return [_message("user", WORDINGS[wording], fact), _message("assistant", ANSWER, fact)]


def _short(fact: int, wording: int) -> list[Message]:
    return [
        {"role": "system", "content": SHORT_ANSWER_SYSTEM},
        _message("user", WORDINGS[wording], fact),
        _message("assistant", SHORT_ANSWER, fact),
    ]


def _two_exchanges(fact: int, wording: int, next_fact: int) -> list[Message]:
    return [
        *_exchange(fact, wording),
        _message("user", NEXT_QUESTION, next_fact),
        _message("assistant", ANSWER, next_fact),
    ]


def _message(role: str, template: str, fact: int) -> Message:
    country, capital = CAPITALS[fact]
    return {"role": role, "content": template.format(country=country, capital=capital)}


def _write_conversations(path: Path, conversations: Iterable[list[Message]]) -> None:
    lines = (json.dumps({"messages": conversation}, ensure_ascii=False) + "\n" for conversation in conversations)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE cut as in Llama 3, which adds no token of its own to a text."""
    tokenizer = Tokenizer(BPE())
    words = Split(Regex(LLAMA_3_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, so that any text can be written.
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    # Roles are part of a prompt without being part of the data.
    tokenizer.train_from_iterator([*texts, "system", "user", "assistant", "\n\n"], trainer)
    return tokenizer


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Written for the class that takes tokenizer.json as it stands; `LlamaTokenizer` would rebuild it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_model(folder: Path, tokenizer: Tokenizer) -> None:
    token_ids = {
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END),
    }
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        dtype="float32",
        **token_ids,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**token_ids)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the data and the model of job_configs/quickstart.yaml.")
    parser.add_argument("folder", type=Path, help="written to FOLDER/data and FOLDER/model")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    make_quickstart(arguments.folder)

"""Tokenizers to test with: a small one that is made here, and those of a folder, each loaded once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from llmforge.dataset.tokenize import SegmentTokenizer


def byte_tokenizer(special_tokens: Iterable[str], merges: Iterable[tuple[str, str]] = ()) -> Tokenizer:
    """One token a byte, the given merges, and the special tokens behind them."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = list(merges)
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in sorted(special_tokens)])
    return tokenizer


@lru_cache
def tokenizer_json(folder: Path) -> str:
    """The text of a folder's tokenizer."""
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@lru_cache
def segment_tokenizer(folder: Path) -> SegmentTokenizer:
    """Ours."""
    return SegmentTokenizer(tokenizer_json(folder))


@lru_cache
def hugging_face_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The independent reference."""
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def text_of_special_tokens(folder: Path) -> list[str]:
    """The control tokens of a folder's tokenizer."""
    return [token["content"] for token in json.loads(tokenizer_json(folder))["added_tokens"] if token["special"]]

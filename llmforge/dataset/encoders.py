"""Ordinary text to token ids, many texts in one call: the tokenizer without its special tokens.

In: the text of a `tokenizer.json`. Out: ids as one flat buffer, no Python object per token. Two encoders give the same
ids: Hugging Face's `tokenizers`, the reference, and `fastokens`, ten times as fast and young, which is used only after
`find_fast_encoder_problem` has compared the two on the job's own texts. It knows nothing of templates.

SentencePiece-style tokenizers put a dummy prefix before a text, which must not happen behind every cut. So there are
two variants of every encoder: the tokenizer as it is, and one without the prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

try:
    from fastokens import Tokenizer as FastTokenizer
except ImportError:  # there is no wheel for every machine
    FastTokenizer = None

DummyPrefix = Literal["never", "first", "always"]

AWKWARD_TEXTS = (
    *("", " ", "  ", "\n", "\n\n", "\r\n", " \n  x", "\t\t", " a", "a ", "\u2581", "\u2581a", "\u00a0x", "\u200b"),
    *("\ufeff", "\x00a", "\u00e9", "e\u0301", "\u4e2d\u6587\u5b57", "\U0001f600\U0001f44d\U0001f3fd", "\u017ft"),
    *("\u0130", "1234567 12", "don't I'LL we've", "a" * 200, " " * 100, "()\n\n", "x=1;\n\n\n    return", "..." * 20),
)
"""What tokenizers disagree on, if they do."""


@dataclass(frozen=True)
class FlatIds:
    """Token ids of several texts, one behind the other."""

    ids: NDArray[np.int32]
    """Shape (tokens,)."""
    offsets: NDArray[np.int64]
    """Shape (texts + 1,): text i has `ids[offsets[i]:offsets[i + 1]]`."""


class Encoder(Protocol):
    """One variant of a tokenizer."""

    def encode(self, texts: Sequence[str]) -> FlatIds:
        """Ids of texts; text that looks like a special token is text."""


class HuggingFaceEncoder:
    """`tokenizers`, which decides every id."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # a control token written in a message stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = None  # some move the offset of a token past the spaces that it begins with

    def encode(self, texts: Sequence[str]) -> FlatIds:
        """See `Encoder`."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return FlatIds(
            np.fromiter((token for row in rows for token in row), dtype=np.int32),
            np.cumsum([0, *map(len, rows)], dtype=np.int64),
        )

    def encode_joined(self, text: str) -> list[int]:
        """Ids of a whole rendered text, control tokens found in it, as other programs ask for them."""
        self._tokenizer.encode_special_tokens = False
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """What tokens are called in the vocabulary."""
        return [str(self._tokenizer.id_to_token(token)) for token in ids]

    def token_starts(self, text: str) -> list[int]:
        """Where each token of a text begins, in characters."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]


class FastEncoder:
    """`fastokens`, for texts by the million. Raises ValueError for a tokenizer that it does not know."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = FastTokenizer.from_json_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> FlatIds:
        """See `Encoder`."""
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), split_special_tokens=True)
        return FlatIds(
            np.frombuffer(ids, np.uint32).astype(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)
        )


class TextEncoders:
    """Both variants of a tokenizer; each is built when it is first used, since that takes seconds."""

    def __init__(self, tokenizer_json: str, *, fast: bool = False) -> None:
        description = msgspec.json.decode(tokenizer_json)
        self.dummy_prefix = _dummy_prefix(description)
        """Where the tokenizer itself puts its prefix: nowhere, before the text, or behind special tokens as well."""
        self.added_tokens: list[dict[str, Any]] = description.get("added_tokens", [])
        self.post_processor: dict[str, Any] = description.get("post_processor") or {}
        never = self.dummy_prefix == "never"
        bare = tokenizer_json if never else msgspec.json.encode(_without_dummy_prefix(description)).decode()
        self._texts = (bare, tokenizer_json)
        self._kind = FastEncoder if fast else HuggingFaceEncoder

    def encode(self, texts: Sequence[str], *, dummy_prefix: bool) -> FlatIds:
        """Ids of texts, by the tokenizer as it is or by the one without a dummy prefix."""
        return (self._prefixing if dummy_prefix else self._bare).encode(texts)

    def token_starts(self, text: str, *, dummy_prefix: bool) -> list[int]:
        """Where each token of a text begins, in characters."""
        return (self.reference if dummy_prefix else self._bare_reference).token_starts(text)

    @cached_property
    def reference(self) -> HuggingFaceEncoder:
        """The tokenizer as it is."""
        same = self._texts[False] is self._texts[True]
        return self._bare_reference if same else HuggingFaceEncoder(self._texts[True])

    @cached_property
    def _bare(self) -> Encoder:
        return self._bare_reference if self._kind is HuggingFaceEncoder else self._kind(self._texts[False])

    @cached_property
    def _prefixing(self) -> Encoder:
        if self._texts[False] is self._texts[True]:
            return self._bare
        return self.reference if self._kind is HuggingFaceEncoder else self._kind(self._texts[True])

    @cached_property
    def _bare_reference(self) -> HuggingFaceEncoder:
        return HuggingFaceEncoder(self._texts[False])


@lru_cache(maxsize=1)
def reference_encoders(tokenizer_json: str) -> TextEncoders:
    """Encoders of Hugging Face; the last ones are kept, since loading them takes a second."""
    return TextEncoders(tokenizer_json)


@lru_cache(maxsize=1)
def open_fast_encoders(tokenizer_json: str) -> TextEncoders | str:
    """Encoders by `fastokens`, loaded, or why there are none for this tokenizer. They are not proven yet.

    The last ones are kept, since loading them takes seconds.
    """
    if FastTokenizer is None:
        return "fastokens is not installed"
    encoders = TextEncoders(tokenizer_json, fast=True)
    try:
        encoders.encode([""], dummy_prefix=False)
        encoders.encode([""], dummy_prefix=True)
    except ValueError as error:
        return f"fastokens: {error}"
    return encoders


def prove_fast_encoders(reference: TextEncoders, tokenizer_json: str, sample: Sequence[str]) -> TextEncoders | str:
    """Encoders by `fastokens`, or why they cannot stand in for the reference of the same tokenizer.

    All ids of the sample must be the same. `sample` holds texts of the job; special tokens and awkward texts are added.
    """
    fast = open_fast_encoders(tokenizer_json)
    if isinstance(fast, str):
        return fast
    special = [token["content"] for token in reference.added_tokens]
    texts = [*sample, *AWKWARD_TEXTS, *special, *(f"a {token}b" for token in special[:64])]
    for prefix in (False,) if reference.dummy_prefix == "never" else (False, True):
        found, expected = (encoders.encode(texts, dummy_prefix=prefix) for encoders in (fast, reference))
        if not (np.array_equal(found.offsets, expected.offsets) and np.array_equal(found.ids, expected.ids)):
            return f"fastokens gives other ids for {texts[_first_difference(found, expected)]!r}"
    return fast


def _first_difference(left: FlatIds, right: FlatIds) -> int:
    """Index of the first text whose ids are not the same."""
    pairs = zip(_split(left), _split(right), strict=True)
    return next(index for index, (one, other) in enumerate(pairs) if not np.array_equal(one, other))


def _split(flat: FlatIds) -> list[NDArray[np.int32]]:
    return np.split(flat.ids, flat.offsets[1:-1])


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a `Sequence` normalizer or pre-tokenizer, or the component itself."""
    if component is None:
        return []
    return list(component[key]) if component["type"] == "Sequence" else [component]


def _dummy_prefix(description: dict[str, Any]) -> DummyPrefix:
    for part in _parts(description["normalizer"], "normalizers"):
        if part["type"] == "Prepend":
            return "always"
    for part in _parts(description["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "Metaspace":
            scheme: DummyPrefix = part.get("prepend_scheme", "always")
            return scheme
        if part["type"] == "ByteLevel" and part["add_prefix_space"]:
            return "always"
    return "never"


def _without_dummy_prefix(description: dict[str, Any]) -> dict[str, Any]:
    normalizers = [part for part in _parts(description["normalizer"], "normalizers") if part["type"] != "Prepend"]
    unprefixed: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    pre_tokenizers = [
        {**part, **unprefixed.get(part["type"], {})} for part in _parts(description["pre_tokenizer"], "pretokenizers")
    ]
    return {
        **description,
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
    }

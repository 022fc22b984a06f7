"""Segments to token ids and labels, so that training, inference and any other server agree on every id.

In: rendered segments of many rows, and the text of a `tokenizer.json`. Out: `Example`s. The rules (prompt format,
section "Tokenizing"): special tokens come only from the format's own text; nothing is tokenized across a place where
inference starts to generate; and what remains equals the tokenizer on the joined text. It knows neither templates nor
rows.

SentencePiece-style tokenizers put a dummy prefix before a text. A run of text behind a cut gets it exactly where the
tokenizer, given the whole text, would have put it: at the start, and behind a special token if the tokenizer splits
there first (`Prepend` normalizers and `prepend_scheme: always`), but never behind a cut that is only the seam of an
answer.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmforge.prompt.render import Segment

IGNORED_LABEL = -100
"""The label of a position without loss, as in `torch.nn.functional.cross_entropy`."""

DummyPrefix = Literal["never", "first", "always"]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as tokens. `labels[i]` is `input_ids[i]` where position i is trained, else -100."""

    input_ids: NDArray[np.int32]
    """Shape (tokens,)."""
    labels: NDArray[np.int32]
    """Shape (tokens,). The first is always -100: nothing stands before it that could predict it."""

    @property
    def num_trained_tokens(self) -> int:
        """How many positions carry loss."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))


@dataclass(slots=True)
class _Run:
    """Text without a cut in it, and how far each part of it is trained."""

    text: str
    dummy_prefix: bool
    spans: list[tuple[int, bool]]
    """(end in characters, trained), in order."""
    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)

    @property
    def is_uniform(self) -> bool:
        return len({trained for _, trained in self.spans}) == 1


@dataclass(frozen=True, slots=True)
class _Special:
    ids: list[int]
    trained: list[bool]


class SegmentTokenizer:
    """Encodes rendered segments. Build one per process: it holds two encoders made from the same `tokenizer.json`."""

    def __init__(self, tokenizer_json: str) -> None:
        description = json.loads(tokenizer_json)
        self._dummy_prefix = _dummy_prefix(description)
        self._with_prefix = _encoder(tokenizer_json)
        never = self._dummy_prefix == "never"
        self._bare = self._with_prefix if never else _encoder(json.dumps(_without_dummy_prefix(description)))
        self.special_ids = _special_ids(description)
        """Control tokens: text to id."""
        pattern = "|".join(re.escape(token) for token in sorted(self.special_ids, key=len, reverse=True))
        self._special_pattern = re.compile(f"({pattern})") if pattern else None

    @property
    def special_tokens(self) -> frozenset[str]:
        """The texts of the control tokens."""
        return frozenset(self.special_ids)

    def encode(self, rows: Sequence[Sequence[Segment]]) -> list[Example]:
        """Tokenize rows together: one call of the encoder for all runs of one kind."""
        cut_rows = [list(self._cut(segments)) for segments in rows]
        self._encode_runs([part for row in cut_rows for part in row if isinstance(part, _Run)])
        return [_join(row) for row in cut_rows]

    def encode_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """The ids that inference gives to the model."""
        return [int(token) for token in self.encode([segments])[0].input_ids]

    def _cut(self, segments: Sequence[Segment]) -> Iterator[_Run | _Special]:
        """Cut rendered text at the format's special tokens and where answers start."""
        run = _Run("", self._dummy_prefix != "never", [])
        for segment in segments:
            if segment.starts_answer and run.text:
                yield run
                run = _Run("", False, [])
            for index, text in enumerate(self.split(segment)):
                if index % 2 == 1:
                    if run.text:
                        yield run
                    yield _Special([self.special_ids[text]], [segment.trained])
                    run = _Run("", self._dummy_prefix == "always", [])
                elif text:
                    run.text += text
                    run.spans.append((len(run.text), segment.trained))
        if run.text:
            yield run

    def split(self, segment: Segment) -> list[str]:
        """Alternately ordinary text and special token; only the format's own text can hold the latter."""
        if self._special_pattern is None or not segment.is_template:
            return [segment.text]
        return self._special_pattern.split(segment.text)

    def _encode_runs(self, runs: Sequence[_Run]) -> None:
        """Fill in the ids of every run. Offsets cost time and are asked for only where a run is trained in part."""
        for prefix, encoder in ((True, self._with_prefix), (False, self._bare)):
            uniform = [run for run in runs if run.dummy_prefix == prefix and run.is_uniform]
            texts = [run.text for run in uniform]
            for run, encoding in zip(uniform, encoder.encode_batch_fast(texts, add_special_tokens=False), strict=True):
                run.ids, run.trained = encoding.ids, [run.spans[0][1]] * len(encoding.ids)
            mixed = [run for run in runs if run.dummy_prefix == prefix and not run.is_uniform]
            texts = [run.text for run in mixed]
            for run, encoding in zip(mixed, encoder.encode_batch(texts, add_special_tokens=False), strict=True):
                run.ids, run.trained = encoding.ids, _flags(run.spans, [start for start, _ in encoding.offsets])


def special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Control tokens of a `tokenizer.json`: text to id."""
    return _special_ids(json.loads(tokenizer_json))


def _special_ids(description: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in description["added_tokens"] if token["special"]}


def _flags(spans: Sequence[tuple[int, bool]], starts: Sequence[int]) -> list[bool]:
    """A token is trained if its first character is."""
    ends = [end for end, _ in spans]
    places = np.minimum(np.searchsorted(ends, starts, side="right"), len(spans) - 1)
    return [spans[place][1] for place in places]


def _join(parts: Sequence[_Run | _Special]) -> Example:
    input_ids = np.array([token for part in parts for token in part.ids], dtype=np.int32)
    trained = np.array([flag for part in parts for flag in part.trained], dtype=bool)
    labels = np.where(trained, input_ids, np.int32(IGNORED_LABEL)).astype(np.int32)
    labels[:1] = IGNORED_LABEL
    return Example(input_ids, labels)


def _encoder(tokenizer_json: str) -> Tokenizer:
    encoder = Tokenizer.from_str(tokenizer_json)
    encoder.encode_special_tokens = True  # a control token written in a message stays text
    encoder.no_truncation()
    encoder.no_padding()
    encoder.post_processor = None  # some move the offset of a token past the spaces that it begins with
    return encoder


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

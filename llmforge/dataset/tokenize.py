"""Segments to token ids and labels, so that training, inference and any other server agree on every id.

In: rendered segments of many rows, and the text of a `tokenizer.json`. Out: an `ExampleBatch`. The rules (prompt
format, section "Tokenizing"): special tokens come only from the format's own text; nothing is tokenized across a place
where inference starts to generate; and what remains equals the tokenizer on the joined text. It knows neither templates
nor rows.

A row is cut first (`dataset/cut.py`). What is the same in all rows of a shape, special tokens and the texts between
them, is encoded once, in a `Plan`; the texts that hold contents are encoded for a whole batch in one call and put in
their places by array operations: there is no Python object per token, and few per message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.assembly import Assembly, Constant, Plan, PlannedRow, by_plan, gather, weights_within
from llmforge.dataset.cut import WHITE_SPACE, CutRow, CutRules, Run, Special, cut
from llmforge.dataset.encoders import TextEncoders
from llmforge.dataset.example import ExampleBatch
from llmforge.prompt.render import Segment

SEAM_WINDOW = 16
"""How many characters on both sides decide whether a token of the joined text would straddle a seam."""


_Window = tuple[str, str, int]
"""The text before a seam, the text behind it, and the index of the row."""


@dataclass(frozen=True)
class TokenizerText:
    """What the files of a tokenizer say."""

    json: str
    """`tokenizer.json`."""
    eos_token: str | None = None
    """The token that ends a text, where the files name one."""


class SegmentTokenizer:
    """Encodes rendered segments. Build one per process: it parses `tokenizer.json`.

    `encoders` are those of this tokenizer, where they exist already: the fast ones must have been proven.
    """

    def __init__(self, tokenizer_json: str, encoders: TextEncoders | None = None) -> None:
        self._encoders = encoders or TextEncoders(tokenizer_json)
        added = self._encoders.added_tokens
        self.special_ids = _special_ids(added)
        """Control tokens: text to id."""
        self.leading_special_ids = _leading_special_ids(self._encoders.post_processor)
        """Control tokens that the tokenizer itself would put before a text: its BOS."""
        pattern = "|".join(re.escape(token) for token in sorted(self.special_ids, key=len, reverse=True))
        self._special_pattern = re.compile(f"({pattern})") if pattern else None
        self._rules = CutRules(
            special_ids=self.special_ids,
            split=lru_cache(maxsize=256)(self._split),
            prefixes_texts=self._encoders.dummy_prefix != "never",
            prefixes_runs=self._encoders.dummy_prefix == "always",
            eats_left=_ids_that(added, "lstrip"),
            eats_right=_ids_that(added, "rstrip"),
        )
        self._constant_ids = lru_cache(maxsize=1024)(self._encode_one)

    @property
    def special_tokens(self) -> frozenset[str]:
        """The texts of the control tokens."""
        return frozenset(self.special_ids)

    def encode(self, rows: Sequence[Sequence[Segment]]) -> ExampleBatch:
        """Tokenize rows together: one call of the encoder for all texts of one kind."""
        return self.encode_planned([self._planned(segments) for segments in rows])

    def encode_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """The ids that inference gives to the model."""
        ids: list[int] = self.encode([segments]).input_ids.tolist()
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """What tokens are called in the vocabulary."""
        return self._encoders.reference.words(ids)

    def cut(self, segments: Sequence[Segment], *, open_contents: bool = False) -> CutRow:
        """Cut rendered text at the format's special tokens and where answers start."""
        return cut(segments, self._rules, open_contents=open_contents)

    def plan(self, cut_row: CutRow) -> Plan:
        """Encode what is the same in all rows that are cut like this one."""
        ids: list[NDArray[np.int32]] = []
        weights: list[NDArray[np.float32]] = []
        chunks: list[Constant | Run] = []
        length = 0
        for item in cut_row.items:
            if isinstance(item, Run) and item.is_open:
                chunks.append(item)
                continue
            ids.append(self._ids_of(item))
            weights.append(self._weights_of(item, len(ids[-1])))
            if chunks and isinstance(chunks[-1], Constant):
                chunks[-1] = chunks[-1]._replace(length=chunks[-1].length + len(ids[-1]))
            else:
                chunks.append(Constant(length, len(ids[-1])))
            length += len(ids[-1])
        return Plan(
            cut_row,
            np.concatenate([np.zeros(0, np.int32), *ids]),
            np.concatenate([np.zeros(0, np.float32), *weights]),
            tuple(chunks),
            tuple(_seam(cut_row, seam) for seam in cut_row.seams),
        )

    def encode_planned(self, rows: Sequence[PlannedRow]) -> ExampleBatch:
        """As `encode`, for rows whose plans are known."""
        return Assembly(rows, self._encoders).examples()

    def find_straddled(self, rows: Sequence[PlannedRow]) -> NDArray[np.bool_]:
        """For every row, whether the tokenizer, given the joined text, would make one token of both sides of a seam.

        There the seam wins: other programs that tokenize the joined text get other ids. Shape (rows,).
        """
        found = np.zeros(len(rows), dtype=bool)
        windows: dict[bool, list[_Window]] = {False: [], True: []}
        for plan, indexes in by_plan(rows):
            contents = [rows[index].contents for index in indexes]
            for before, behind in plan.seams:
                lefts = before.texts(contents)
                rights = [""] * len(indexes) if behind is None else behind.texts(contents)
                for index, left, right in zip(indexes, lefts, rights, strict=True):
                    is_whole = len(left) <= SEAM_WINDOW
                    prefix = before.dummy_prefix and is_whole
                    windows[prefix].append((left if is_whole else left[-SEAM_WINDOW:], right[:SEAM_WINDOW], index))
        for prefix, chosen in windows.items():
            if chosen:
                owners = np.array([index for _, _, index in chosen])
                found[owners[self._joins(chosen, dummy_prefix=prefix)]] = True
        return found

    def split(self, segment: Segment) -> Sequence[str]:
        """Alternately ordinary text and special token; only the format's own text can hold the latter."""
        return self._split(segment.text) if segment.is_template else (segment.text,)

    def _split(self, text: str) -> tuple[str, ...]:
        return (text,) if self._special_pattern is None else tuple(self._special_pattern.split(text))

    def _planned(self, segments: Sequence[Segment]) -> PlannedRow:
        """A row with a plan of its own: the texts that are no template's are encoded with those of other rows."""
        contents = [segment.text for segment in segments]
        opened = [
            segment._replace(message=None if segment.is_template or not segment.text.strip(WHITE_SPACE) else index)
            for index, segment in enumerate(segments)
        ]
        return PlannedRow(self.plan(self.cut(opened, open_contents=True)), contents)

    def _ids_of(self, item: Special | Run) -> NDArray[np.int32]:
        if isinstance(item, Special):
            return np.array([item.token], dtype=np.int32)
        return self._constant_ids("".join(item.split(())), item.dummy_prefix)

    def _weights_of(self, item: Special | Run, num_tokens: int) -> NDArray[np.float32]:
        if isinstance(item, Special):
            return np.array([item.weight], dtype=np.float32)
        if len(set(item.weights)) == 1:
            return np.full(num_tokens, item.weights[0], dtype=np.float32)
        return weights_within(item, (), self._encoders)

    def _encode_one(self, text: str, dummy_prefix: bool) -> NDArray[np.int32]:
        return self._encoders.encode([text], dummy_prefix=dummy_prefix).ids

    def _joins(self, windows: Sequence[_Window], *, dummy_prefix: bool) -> NDArray[np.bool_]:
        """Whether the ids of both sides of each seam, encoded together, are not those of the sides."""
        joined = self._encoders.encode([left + right for left, right, _ in windows], dummy_prefix=dummy_prefix)
        left = self._encoders.encode([left for left, _, _ in windows], dummy_prefix=dummy_prefix)
        right = self._encoders.encode([right for _, right, _ in windows], dummy_prefix=False)
        lengths = np.stack([np.diff(left.offsets), np.diff(right.offsets)], axis=1)
        differs = np.diff(joined.offsets) != lengths.sum(axis=1)
        starts = np.stack([left.offsets[:-1], right.offsets[:-1] + len(left.ids)], axis=1)
        same = ~differs
        apart = gather(np.concatenate([left.ids, right.ids]), starts[same].ravel(), lengths[same].ravel())
        together = gather(joined.ids, joined.offsets[:-1][same], np.diff(joined.offsets)[same])
        owners = np.repeat(np.flatnonzero(same), np.diff(joined.offsets)[same])
        differs[owners[apart != together]] = True
        return np.asarray(differs)


def special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Control tokens of a `tokenizer.json`: text to id."""
    return _special_ids(msgspec.json.decode(tokenizer_json).get("added_tokens", []))


def _seam(cut_row: CutRow, seam: int) -> tuple[Run, Run | None]:
    """The runs before and behind a seam."""
    before, behind = cut_row.items[seam - 1], cut_row.items[seam] if seam < len(cut_row.items) else None
    assert isinstance(before, Run)
    return before, behind if isinstance(behind, Run) else None


def _special_ids(added: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in added if token["special"]}


def _ids_that(added: Sequence[dict[str, Any]], flag: str) -> frozenset[int]:
    """Special tokens with a flag."""
    return frozenset(token["id"] for token in added if token["special"] and token.get(flag))


def _leading_special_ids(processor: dict[str, Any]) -> frozenset[int]:
    """What a `TemplateProcessing` post-processor puts before a text."""
    found: set[int] = set()
    for part in processor.get("processors", [processor]):
        for piece in part.get("single", ()):
            if "SpecialToken" not in piece:
                break
            found.update(part["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return frozenset(found)

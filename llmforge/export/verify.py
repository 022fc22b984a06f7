"""Whether everybody makes the ids of a prompt that training made: llmforge, the chat template, a server, the data.

In: the small files of a checkpoint or an export, its job, and conversations. Out: a `Verification`. Our own ids are
compared with `apply_chat_template` of `transformers`, with the template's text given to the plain tokenizer, which is
what servers do, and with the ids in the prepared dataset.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmforge.checkpoint.records import manifest_of
from llmforge.config.job import JobConfig
from llmforge.dataset.row_encoder import job_encoder
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ModelError
from llmforge.export.comparison import (
    Finding,
    Tally,
    Verification,
    Way,
    compare_ids,
    first_difference,
    tally,
    tokens_around,
)
from llmforge.export.prompts import ProofRow, ProofRows
from llmforge.export.stored import Ids, StoredExamples
from llmforge.inference.find import TrainedSource
from llmforge.models.folder import read_eos_token, read_tokenizer_json
from llmforge.prompt.messages import Conversation, Message
from llmforge.prompt.render import render_prompt_segments
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import local_folder

TOKENIZER_FOLDER = "tokenizers"
"""Holds the tokenizers of checkpoints in object stores, in the cache of this machine."""
UNTRAINED = "not trained on as they stand, or too long"
_Encode = Callable[[Conversation], list[int]]


@dataclass(frozen=True)
class Parties:
    """Everybody who makes ids of a prompt."""

    job: JobConfig
    ours: SegmentTokenizer
    theirs: PreTrainedTokenizerBase
    """As any program loads it from the folder."""
    eos_token: str | None

    @classmethod
    def of(cls, folder: Path, job: JobConfig) -> "Parties":
        """Raises `ModelError` where the folder has no tokenizer or no chat template."""
        ours = SegmentTokenizer(read_tokenizer_json(folder))  # first, for its errors
        theirs = AutoTokenizer.from_pretrained(folder)
        if theirs.chat_template is None:
            raise ModelError(
                f"{folder}: the tokenizer has no chat template, so no other program can make prompts with it; export "
                "the run, which writes one"
            )
        return cls(job, ours, theirs, read_eos_token(folder))

    def our_ids(self, prompt: Conversation) -> list[int]:
        """What llmforge gives to the model."""
        return self.ours.encode_prompt(render_prompt_segments(prompt, self.job.prompt_format))

    def template_ids(self, prompt: Conversation) -> list[int]:
        """What `transformers` gives to the model. Raises jinja2's `TemplateError`."""
        ids: list[int] = self.theirs.apply_chat_template(
            _raw(prompt), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return ids

    def server_ids(self, prompt: Conversation) -> list[int]:
        """What a server gives to the model: text first, then ids. Raises jinja2's `TemplateError`."""
        text = self.theirs.apply_chat_template(_raw(prompt), tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.theirs(text, add_special_tokens=False)["input_ids"]
        return ids

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The tokens by their names."""
        return [str(token) for token in self.theirs.convert_ids_to_tokens(list(ids))]

    def spelled(self, conversation: Conversation) -> list[str]:
        """Control tokens that a message spells out, which only llmforge keeps as text."""
        if self.job.prompt_format.parse_special_in_content:
            return []
        contents = [message.content for message in conversation.messages]
        return [token for token in sorted(self.ours.special_ids) if any(token in content for content in contents)]


def fetch_tokenizer(source: TrainedSource, cache_folder: Path) -> Path:
    """A folder with the small files of a checkpoint or an export, verified; no weight is fetched for it."""
    small = [file.path for file in source.checkpoint.files if "/" not in file.path and not _is_weights(file.path)]
    target = cache_folder / TOKENIZER_FOLDER / source.checkpoint.name
    return local_folder(open_storage(source.uri), "", manifest_of(source.checkpoint), target, small)


def verify(folder: Path, job: JobConfig, rows: ProofRows, stored: StoredExamples | None) -> Verification:
    """Compare the prompts of conversations, and their training ids with those that are stored."""
    parties = Parties.of(folder, job)
    findings: list[Finding] = []
    tallies: list[Tally] = []
    ways: tuple[tuple[Way, _Encode], ...] = (
        ("chat template", parties.template_ids),
        ("server", parties.server_ids),
    )
    for way, encode in ways:
        found = [finding for row in rows.rows if (finding := _compare_prompt(row, way, encode, parties)) is not None]
        findings += found
        tallies.append(tally(way, len(rows.rows), found))
    found, counts = _compare_stored(rows, parties, stored)
    return Verification(rows.origin, (*tallies, counts), (*findings, *found))


def _compare_prompt(row: ProofRow, way: Way, encode: _Encode, parties: Parties) -> Finding | None:
    spelled = parties.spelled(row.prompt)
    if spelled:
        # With the spelled tokens out of the way nothing may differ.
        neutral = _compare_plain(row.place, way, encode, parties, _without(row.prompt, spelled))
        if neutral is not None:
            return neutral
    return _compare_plain(row.place, way, encode, parties, row.prompt)


def _compare_plain(place: str, way: Way, encode: _Encode, parties: Parties, prompt: Conversation) -> Finding | None:
    try:
        theirs = encode(prompt)
    except TemplateError as error:
        return Finding(place, way, "refusal", f"the chat template refuses it: {error}")
    return compare_ids(place, way, parties.our_ids(prompt), theirs, parties.texts, parties.spelled(prompt))


def _without(prompt: Conversation, spelled: Sequence[str]) -> Conversation:
    """The same with a space inside every control token that a message spells."""

    def broken(content: str) -> str:
        for token in spelled:
            content = content.replace(token, f"{token[0]} {token[1:]}")
        return content

    return Conversation(tuple(message._replace(content=broken(message.content)) for message in prompt.messages))


def _compare_stored(rows: ProofRows, parties: Parties, stored: StoredExamples | None) -> tuple[list[Finding], Tally]:
    way: Way = "prepared data"
    if stored is None or not rows.are_data:
        because = "the prepared dataset cannot be reached" if rows.are_data else "there are no rows of the run"
        return [], tally(way, len(rows.rows), [], len(rows.rows), because)
    wanted = list(_training_ids(rows, parties, stored.stats.context_length))
    there = stored.find({ids.tobytes() for _, ids in wanted})
    missing = [(row, ids) for row, ids in wanted if ids.tobytes() not in there]
    reasons = {UNTRAINED: len(rows.rows) - len(wanted)}
    reasons |= dict(Counter(_excuse(row, parties, stored) for row, _ in missing))
    findings = [
        _missing(row.place, ids, stored.nearest(ids), parties)
        for row, ids in missing
        if not _excuse(row, parties, stored)
    ]
    skipped = {reason: count for reason, count in reasons.items() if reason and count}
    return findings, tally(way, len(rows.rows), findings, sum(skipped.values()), ", or ".join(skipped))


def _excuse(row: ProofRow, parties: Parties, stored: StoredExamples) -> str:
    """Why a row need not be stored; empty where nothing says so."""
    if row.uri is not None and stored.is_older_than(row.uri):
        return "written after the data were prepared"
    if any(source.weight is not None for source in parties.job.train_sources):
        return "not drawn"
    return ""


def _training_ids(rows: ProofRows, parties: Parties, context_length: int) -> Iterator[tuple[ProofRow, Ids]]:
    """The ids of every row that was trained on or validated with, whole."""
    encoder = job_encoder(parties.job, parties.eos_token, parties.ours)
    encoded = encoder.encode([row.conversation for row in rows.rows])
    for row, example, problem in zip(rows.rows, encoded.examples, encoded.problems, strict=True):
        if problem is None and example.num_trained_tokens and len(example.input_ids) <= context_length:
            yield row, example.input_ids.astype(np.int32)


def _missing(place: str, ids: Ids, nearest: Ids, parties: Parties) -> Finding:
    ours, theirs = ids.tolist(), nearest.tolist()
    position = first_difference(ours, theirs) or 0
    return Finding(
        place,
        "prepared data",
        "difference",
        f"no stored example has these ids; the nearest differs from token {position}",
        position,
        tokens_around(ours, position, parties.texts),
        tokens_around(theirs, position, parties.texts),
    )


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt"))


def _raw(prompt: Conversation) -> list[dict[str, str]]:
    return [_raw_message(message) for message in prompt.messages]


def _raw_message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}

"""Our text, ids and loss masks against those that other programs wrote down, conversation by conversation.

Every reference is compared whole. A case passes, or it stands in `DIFFERENCES` under a reason: a case that begins to
pass, or to fail, makes a test fail. docs/prompt-formats.md tells users the same reasons.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from llmforge.config.families import FAMILIES
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import Segment, render, render_prompt_segments
from tests.prompt.references import REFERENCES, Case, Reference, belongs, cases_of, conversations, without_pieces
from tests.prompt.tokenizers import segment_tokenizer

Outcome = Literal["they refuse", "we refuse", "differs", "mask differs"]
Found = dict[tuple[str, Outcome], set[str]]
"""(kind, outcome) to the names of conversations."""


class Reason(NamedTuple):
    """Why our result is not theirs."""

    outcome: Outcome
    sentence: str


REASONS = {
    "empty message": Reason("we refuse", "a user or assistant message without content is an error here"),
    "they refuse empty answers": Reason("they refuse", "so do we"),
    "they refuse system messages": Reason("they refuse", "the format takes one, in the first user turn"),
    "empty system message": Reason("differs", "it is dropped here; they write an empty header or blank lines"),
    "control tokens": Reason("differs", "a control token that a message spells out stays text here"),
    "first user turn": Reason(
        "differs", "system and user message are each stripped here before they are joined; they strip less or later"
    ),
    "header apart": Reason(
        "differs", "they tokenize a header apart from its content; a server tokenizes the whole text, as we do"
    ),
    "start of an answer": Reason(
        "differs", "a token would straddle the place where generation starts; here that place always is a cut"
    ),
    "last user turn": Reason("differs", "they move the system message there; here it stands in the first"),
    "stripped answers": Reason(
        "differs", "they strip answers (some only in training mode); here they stay as they are"
    ),
    "stripped messages": Reason("differs", "they strip every message; here they stay as they are"),
    "dropped system message": Reason(
        "differs", "they leave it out of a training conversation that ends with an answer"
    ),
    "system message before the marker": Reason("differs", "they put it before the first [INST]; mistral-common inside"),
    "no space before answers": Reason("differs", "they have none; mistral-common, whose format it is, has one"),
    "other spaces": Reason("differs", "they set spaces around the markers otherwise than the model's makers"),
    "dates": Reason("differs", "they add a system header with dates; Meta's own code does not"),
    "default system message": Reason("differs", "they have one of their own"),
    "thinking block": Reason("differs", "they put an empty one before the last answer: such models are refused"),
    "header trained": Reason("mask differs", "they train the header of the answer, or a part of it"),
    "line feed trained": Reason(
        "mask differs", "they train the line feed behind the terminator, which is never sampled"
    ),
    "space not trained": Reason("mask differs", "they leave out the space between the answer and its terminator"),
}


class Difference(NamedTuple):
    """Conversations of some references that differ for one reason."""

    reason: str
    references: str
    """Names, separated by commas."""
    full: str = ""
    """Training conversations, such as `c001-c003 c007`; `all` of those that are compared."""
    prompt: str = ""
    """The same for prompts of inference."""


_META = "meta llama3, hub llama3, trl llama3, chujiezheng llama3, torchtune llama3, meta llama2, hub llama2"
_STRIPPED = f"{_META}, chujiezheng llama2, torchtune llama2, trl gemma, chujiezheng gemma, hub gemma3, vicuna, alpaca"
_QWEN = "hub qwen2, hub qwen2.5, trl qwen2.5"
_LAST_TURN = "common v2, common v3, common tekken"
_WITH_SYSTEM = "c036-c043 c046 c047"
DIFFERENCES = (
    Difference("empty message", _STRIPPED, "c044 c045 c048", "c045 c048"),
    Difference("empty message", "factory llama2, axolotl llama3, axolotl llama2", "c044 c045 c048"),
    Difference("empty message", f"{_LAST_TURN}, common v1, common v7", "c045", "c045"),
    Difference("empty message", "finetune v1, finetune v2, finetune v3, finetune tekken", "c045"),
    Difference(
        "empty message",
        "factory llama3, factory mistral-v1, factory mistral-v3, factory qwen, factory zephyr, axolotl llama3.1, "
        "axolotl mistral-v1, axolotl mistral-v3, axolotl qwen2, axolotl zephyr",
        "c044 c045",
    ),
    Difference(
        "empty message",
        f"{_QWEN}, meta llama-models, hub llama3.1, hub llama3.2, hub mistral-v1, chujiezheng mistral, "
        "torchtune mistral, hub mistral-v3, hub qwen3, hub zephyr, dolphin, hub phi3",
        "c044 c045",
        "c045",
    ),
    Difference("they refuse empty answers", f"{_LAST_TURN}, common v1, common v7", "c044"),
    Difference("they refuse empty answers", "finetune v1, finetune v2, finetune v3, finetune tekken", "c044"),
    Difference(
        "they refuse system messages", "hub mistral-v1, torchtune mistral, trl gemma", _WITH_SYSTEM, _WITH_SYSTEM
    ),
    Difference("they refuse system messages", "axolotl mistral-v1", _WITH_SYSTEM),
    Difference(
        "empty system message",
        f"{_META}, {_QWEN}, meta llama-models, chujiezheng llama2, common v7, chujiezheng mistral, hub zephyr, "
        "dolphin, hub gemma3, hub phi3, vicuna, alpaca",
        "c046",
        "c046",
    ),
    Difference("empty system message", "axolotl llama3, axolotl llama2, axolotl qwen2, axolotl zephyr", "c046"),
    Difference("empty system message", "factory qwen", "c046"),
    Difference("empty system message", "hub mistral-v3, hub qwen3", prompt="c046"),
    Difference("control tokens", "hub llama3, trl llama3, chujiezheng llama3", "c049", "c049"),
    Difference("control tokens", "factory llama3, axolotl llama3", "c049"),
    Difference(
        "control tokens",
        "hub llama2, chujiezheng llama2, chujiezheng mistral, hub mistral-v3, hub zephyr, vicuna, alpaca",
        "c050",
        "c050",
    ),
    Difference("control tokens", "factory mistral-v3, axolotl llama2, axolotl mistral-v3, axolotl zephyr", "c050"),
    Difference("control tokens", _QWEN, "c051", "c051"),
    Difference("control tokens", "axolotl qwen2, factory qwen", "c051"),
    Difference("control tokens", "hub mistral-v1", prompt="c050"),
    Difference("control tokens", "hub qwen3", prompt="c051"),
    Difference(
        "first user turn", "meta llama2, hub llama2, chujiezheng llama2, chujiezheng gemma, hub gemma3", "c047", "c047"
    ),
    Difference("first user turn", "axolotl llama2", "c047"),
    Difference("header apart", "meta llama-models", "c047", "c047"),
    Difference("start of an answer", _QWEN, "c047 c048", "c048"),
    Difference("start of an answer", "axolotl qwen2", "c047 c048"),
    Difference("start of an answer", "hub qwen3", prompt="c048"),
    Difference("last user turn", _LAST_TURN, "c042 c043", "c042 c043"),
    Difference("last user turn", "finetune v2, finetune v3, finetune tekken", "c042 c043"),
    Difference("last user turn", "hub mistral-v3", prompt="c042 c043"),
    Difference("stripped answers", f"{_LAST_TURN}, common v7", "c047 c048"),
    Difference("stripped answers", "hub mistral-v3", "c048 c055", "c048"),
    Difference("stripped answers", "axolotl mistral-v3", "c048 c055"),
    Difference("stripped messages", "chujiezheng mistral", "c015 c048 c055", "c015 c048 c055"),
    Difference("dropped system message", "hub mistral-v3, axolotl mistral-v3", "c036-c043 c047"),
    Difference("system message before the marker", "chujiezheng mistral", "c036-c043 c047", "c036-c043 c047"),
    Difference("no space before answers", "hub mistral-v1", "all", "c019-c026 c028-c035 c048"),
    Difference("no space before answers", "axolotl mistral-v1", "all"),
    Difference("other spaces", "torchtune llama2, torchtune mistral", "all", "all"),
    Difference("other spaces", "factory llama2, factory mistral-v1, factory zephyr", "all"),
    Difference("dates", "hub llama3.1, hub llama3.2", "all", "all"),
    Difference("dates", "axolotl llama3.1", "all"),
    Difference("default system message", "dolphin", "c000-c035 c048-c059", "c000-c035 c044 c048-c059"),
    Difference("thinking block", "hub qwen3", "all"),
    Difference("header trained", "torchtune llama3, trl qwen2.5", "all"),
    Difference("line feed trained", "factory qwen", "all"),
    Difference("space not trained", "axolotl llama2", "all"),
)


@pytest.mark.slow  # loads every large tokenizer of the material
@pytest.mark.parametrize("name", REFERENCES)
def test_results_equal_the_reference(name: str, material: Path) -> None:
    reference = REFERENCES[name]
    cases = [case for case in cases_of(material, reference.file) if belongs(case, reference)]
    found, compared = results(reference, cases, material)
    for kind in ("full", "prompt"):
        expected = expected_differences(name, kind, {kept for kept in compared if kept[0] == kind})
        assert {outcome: found[kind, outcome] for outcome in expected} == expected
    assert {kind for kind, _ in compared} <= {"full", "prompt"}
    assert {kind for kind, _ in found} <= {"full", "prompt"}


def test_every_case_of_every_file_is_compared_once(material: Path) -> None:
    files = {path.stem for path in (material / "reference").glob("*.jsonl")} - {"conversations"}
    assert files == {reference.file for reference in REFERENCES.values()}
    for file in sorted(files):
        references = [reference for reference in REFERENCES.values() if reference.file == file]
        for case in cases_of(material, file):
            assert len([1 for reference in references if belongs(case, reference)]) == 1, case["source"]


def test_the_table_of_differences_names_what_there_is(repository: Path) -> None:
    assert {difference.reason for difference in DIFFERENCES} == set(REASONS)
    documented = (repository / "docs" / "prompt-formats.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"- **{reason}**: " not in documented] == []
    assert {name for difference in DIFFERENCES for name in names(difference)} <= set(REFERENCES)


def results(reference: Reference, cases: list[Case], material: Path) -> tuple[Found, set[tuple[str, str]]]:
    """What differs, and the (kind, conversation) of all that both programs could render."""
    row = next(family for family in FAMILIES if family.name == reference.row)
    prompt_format = row.prompt_format.model_copy(update=reference.changed)
    ours = segment_tokenizer(material / "tokenizers" / reference.tokenizer) if reference.tokenizer else None
    found: Found = defaultdict(set)
    compared: list[tuple[Case, list[Segment]]] = []
    for case in cases:
        if case.get("error"):
            found[case["kind"], "they refuse"].add(case["conversation"])
            continue
        try:
            compared.append((case, segments_of(case, prompt_format, ours)))
        except DataError:
            found[case["kind"], "we refuse"].add(case["conversation"])
    for case, outcome in outcomes(compared, reference.ending, ours):
        found[case["kind"], outcome].add(case["conversation"])
    return found, {(case["kind"], case["conversation"]) for case, _ in compared}


def segments_of(case: Case, prompt_format: PromptFormat, ours: SegmentTokenizer | None) -> list[Segment]:
    conversation = parse_conversation(case["messages"], prompt_format, for_training=case["kind"] == "full")
    if case["kind"] == "prompt":
        return render_prompt_segments(conversation, prompt_format)
    return render(conversation, prompt_format, special_tokens=ours.special_tokens if ours else frozenset())


def outcomes(
    compared: list[tuple[Case, list[Segment]]], ending: str, ours: SegmentTokenizer | None
) -> list[tuple[Case, Outcome]]:
    """The cases that are not the same, all rows in one call of the tokenizer."""
    differing: list[tuple[Case, Outcome]] = []
    if ours is None:
        for case, segments in compared:
            text = without_pieces("".join(segment.text for segment in segments))
            ended = ending if case["kind"] == "full" else ""
            if text + ended != without_pieces(case["text"]):
                differing.append((case, "differs"))
        return differing
    examples = ours.encode([segments for _, segments in compared])
    for (case, _), example in zip(compared, examples, strict=True):
        ended_ids = [ours.special_ids[ending]] if ending and case["kind"] == "full" else []
        mask = [int(label != IGNORED_LABEL) for label in example.labels] + [0] * len(ended_ids)
        if example.input_ids.tolist() + ended_ids != case["ids"]:
            differing.append((case, "differs"))
        elif case["kind"] == "full" and mask != (case.get("loss_mask") or mask):
            differing.append((case, "mask differs"))
    return differing


def expected_differences(name: str, kind: str, compared: set[tuple[str, str]]) -> dict[Outcome, set[str]]:
    """What the table says; `all` is what is left of the compared cases, so that a case has one reason."""
    expected: dict[Outcome, set[str]] = {reason.outcome: set() for reason in REASONS.values()}
    rows = [difference for difference in DIFFERENCES if name in names(difference)]
    texts = [(REASONS[row.reason].outcome, row.full if kind == "full" else row.prompt) for row in rows]
    for outcome, text in texts:
        if text != "all":
            assert not expected[outcome] & conversations(text)
            expected[outcome] |= conversations(text)
    for outcome, text in texts:
        if text == "all":
            expected[outcome] |= {conversation for _, conversation in compared} - expected["differs"]
    return expected


def names(difference: Difference) -> list[str]:
    return difference.references.split(", ")

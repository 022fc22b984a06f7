"""Conversations and documents to examples: shapes that rows share change nothing, and every check can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.config.data import DatasetConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import Example
from llmforge.dataset.row_encoder import NO_TERMINATOR, TWO_BEGINNINGS, EncodedRows, RowEncoder
from llmforge.dataset.rows import parse_row
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.models.folder import read_eos_token
from llmforge.prompt.document import Document, TrainingRow, plain_text
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import Segment, Task, TrainOn, render
from tests.prompt.formats import (
    ADJACENT,
    CHATML,
    FORMATS,
    LLAMA_2,
    LLAMA_3,
    MISTRAL_BOS,
    MISTRAL_LAST,
    PLAIN,
    SPECIAL_TOKENS,
    VERBATIM,
    Row,
    contents,
    rows,
)
from tests.prompt.tokenizers import byte_tokenizer, hugging_face_tokenizer, segment_tokenizer

OURS = SegmentTokenizer(byte_tokenizer(SPECIAL_TOKENS, merges=[("\u010a", "\u010a")]).to_str())
EXCHANGE: Row = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SYSTEM = {"role": "system", "content": "s"}


def encode(
    prompt_format: PromptFormat,
    *given_rows: Row,
    task: Task = "instruction_tuning",
    train_on: TrainOn = "all_turns",
    tokenizer: SegmentTokenizer = OURS,
) -> EncodedRows:
    conversations = [parse_conversation(row, prompt_format) for row in given_rows]
    return RowEncoder(prompt_format, tokenizer, task, train_on).encode(conversations)


@given(
    many=st.lists(rows(contents(*SPECIAL_TOKENS)), min_size=1, max_size=5),
    prompt_format=st.sampled_from(list(FORMATS.values())),
    task=st.sampled_from(["instruction_tuning", "causal_lm", "classification"]),
    train_on=st.sampled_from(["all_turns", "last_turn"]),
    weights=st.lists(st.sampled_from([0, 0.5, 1, 1, 2]), min_size=6, max_size=6),
)
@settings(max_examples=60)
def test_rows_together_are_rows_rendered_and_tokenized_one_by_one(
    many: list[Row], prompt_format: PromptFormat, task: Task, train_on: TrainOn, weights: list[float]
) -> None:
    many = [[{**message, "weight": weight} for message, weight in zip(row, weights * 2, strict=False)] for row in many]
    found = encode(prompt_format, *many, task=task, train_on=train_on)
    for row, example in zip(many, found.examples, strict=True):
        conversation = parse_conversation(row, prompt_format)
        segments = render(conversation, prompt_format, special_tokens=OURS.special_tokens, task=task, train_on=train_on)
        alone = OURS.encode([segments])[0]
        assert example.input_ids.tolist() == alone.input_ids.tolist()
        assert example.labels.tolist() == alone.labels.tolist()
        ours, theirs = (
            (one.labels >= 0).astype(np.float32) if one.weights is None else one.weights for one in (example, alone)
        )
        assert ours.tolist() == theirs.tolist()


def test_weights_scale_the_turns_they_stand_at() -> None:
    row: Row = [*EXCHANGE, EXCHANGE[0], {**EXCHANGE[1], "weight": 0.5}, EXCHANGE[0], {**EXCHANGE[1], "train": False}]
    example = encode(ADJACENT, row).examples[0]
    assert example.weights is not None
    assert example.weights.tolist() == [0, 0, 0, 1, 1, 0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert encode(ADJACENT, EXCHANGE).examples[0].weights is None


def test_what_the_tasks_train() -> None:
    row: Row = [SYSTEM, *EXCHANGE, *EXCHANGE]  # <s>s</s>a</s>b</s>a</s>b</s>

    def trained(task: Task, train_on: TrainOn = "all_turns") -> list[int]:
        labels = encode(ADJACENT, row, task=task, train_on=train_on).examples[0].labels
        return [index for index, label in enumerate(labels) if label >= 0]

    assert trained("instruction_tuning") == [5, 6, 9, 10]
    assert trained("instruction_tuning", "last_turn") == [9, 10]
    assert trained("classification") == [9]  # and the text ends there
    assert trained("causal_lm") == list(range(1, 11))


@pytest.mark.parametrize("prompt_format", FORMATS.values(), ids=list(FORMATS))
def test_known_formats_pass_all_checks(prompt_format: PromptFormat) -> None:
    found = encode(prompt_format, [SYSTEM, *EXCHANGE, *EXCHANGE], EXCHANGE)
    assert found.problems == [None, None]
    assert found.num_prompts.tolist() == [2, 1]


MOVED = (
    "the prompt that inference would give before answer 2 is not the begin of the training text: with "
    "system_in_last_user the system message stands in another turn there; remove system_in_last_user, or train the "
    "last answers only (dataset.train_on: last_turn)"
)


def test_parity_fails_where_the_system_message_moves() -> None:
    several: Row = [SYSTEM, *EXCHANGE, *EXCHANGE]
    assert encode(MISTRAL_LAST, several, [SYSTEM, *EXCHANGE], [*EXCHANGE, *EXCHANGE]).problems == [MOVED, None, None]
    last = encode(MISTRAL_LAST, several, train_on="last_turn")
    assert last.problems == [None]
    assert last.num_prompts.tolist() == [1]


def test_parity_fails_where_the_cue_is_no_part_of_the_answer() -> None:
    cueless = LLAMA_3.model_copy(update={"trailing_assistant": "<|start_header_id|>model<|end_header_id|>\n\n"})
    assert encode(cueless, EXCHANGE).problems == [
        "the prompt that inference would give before answer 1 is not the begin of the training text"
    ]


def test_a_second_beginning_is_noticed() -> None:
    opened = MISTRAL_BOS.model_copy(update={"parse_special_in_content": True})
    rendered: Row = [{"role": "user", "content": "<s>a"}, EXCHANGE[1]]
    adjacent = opened.model_copy(update={"user": "{system}{instruction}"})
    assert encode(adjacent, rendered).problems == [TWO_BEGINNINGS]
    assert encode(opened, rendered).problems == [TWO_BEGINNINGS]
    assert encode(opened, EXCHANGE).problems == [None]
    assert encode(opened.model_copy(update={"bos": ""}), rendered).problems == [None]
    assert encode(MISTRAL_BOS, rendered).problems == [None]  # there the content is only text


def test_a_format_whose_turns_begin_anew_has_several_beginnings() -> None:
    anew = MISTRAL_BOS.model_copy(update={"bos": "", "user": "<s>[INST] {system}{instruction} [/INST]"})
    assert encode(anew, [*EXCHANGE, *EXCHANGE]).problems == [None]
    assert encode(anew.model_copy(update={"bos": "<s>"}), EXCHANGE).problems == [TWO_BEGINNINGS]


def test_an_untrained_terminator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No format can do it, so the renderer is made to."""

    def without_terminator(*arguments: object, **options: object) -> object:
        return [s._replace(weight=0.0) if s.text == "</s>" else s for s in render(*arguments, **options)]  # type: ignore[arg-type]

    assert encode(ADJACENT, EXCHANGE).problems == [None]
    monkeypatch.setattr("llmforge.dataset.row_encoder.render", without_terminator)
    found = encode(ADJACENT, EXCHANGE)
    assert found.problems == [NO_TERMINATOR]
    assert found.ends_with_terminator.tolist() == [False]


def test_rows_that_end_with_a_control_token() -> None:
    untrained = [EXCHANGE[0], {**EXCHANGE[1], "weight": 0}]
    assert encode(ADJACENT, EXCHANGE, untrained).ends_with_terminator.tolist() == [True, False]
    assert encode(PLAIN, EXCHANGE).ends_with_terminator.tolist() == [False]


def test_a_token_across_a_seam_is_counted() -> None:
    """Two line feeds are one token here."""
    touching = PLAIN.model_copy(update={"strip_whitespace": False})
    straddling = [EXCHANGE[0], {**EXCHANGE[1], "content": "\nb"}]
    assert encode(touching, straddling, EXCHANGE).straddled.tolist() == [True, False]
    assert encode(PLAIN, straddling).straddled.tolist() == [False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "prompt_format", "answer", "straddled"),
    [
        ("llama3-hf", LLAMA_3, "fine", False),
        ("llama3-hf", LLAMA_3.model_copy(update={"strip_whitespace": False}), "\nfine", True),
        ("llama2-hf", MISTRAL_BOS, "fine", False),
        ("qwen2-hf", CHATML, "\n\nfine", True),
        ("qwen2-hf", CHATML, "fine", False),
    ],
)
def test_seams_of_real_tokenizers(
    folder: str, prompt_format: PromptFormat, answer: str, straddled: bool, material: Path
) -> None:
    tokenizer = segment_tokenizer(material / "tokenizers" / folder)
    row = [EXCHANGE[0], {**EXCHANGE[1], "content": answer}]
    found = encode(prompt_format, row, EXCHANGE, tokenizer=tokenizer)
    assert found.straddled.tolist() == [straddled, False]


def test_blank_contents_are_no_shape_of_others() -> None:
    """In a verbatim format an empty message leaves no text, so the next one may begin the row."""
    blank = [{**EXCHANGE[0], "content": " "}, EXCHANGE[1]]
    found = encode(VERBATIM, EXCHANGE, blank, EXCHANGE)
    assert [example.input_ids.tolist() for example in found.examples] == [
        OURS.encode_prompt(render(parse_conversation(row, VERBATIM), VERBATIM)) for row in (EXCHANGE, blank, EXCHANGE)
    ]


@pytest.mark.slow
def test_real_rows_have_one_shape_for_each_length(material: Path) -> None:
    tokenizer = segment_tokenizer(material / "tokenizers" / "llama3-hf")
    with (material / "data" / "chat" / "oasst1-threads.jsonl").open(encoding="utf-8") as file:
        many = [json.loads(next(file))["messages"] for _ in range(60)]
    found = encode(LLAMA_3, *many, tokenizer=tokenizer)
    assert found.problems == [None] * 60
    assert found.num_prompts.tolist() == [len(row) // 2 for row in many]
    assert found.ends_with_terminator.all()


def text_encoder(prompt_format: PromptFormat, eos_token: str | None, tokenizer: SegmentTokenizer = OURS) -> RowEncoder:
    return RowEncoder(prompt_format, tokenizer, "causal_lm", "all_turns", eos_token)


def labels_of(example: Example) -> list[int]:
    found: list[int] = example.labels.tolist()
    return found


REAL_TEXTS = [
    'Once upon a time, there was a little girl named Lily.\n\nShe said: "Hé, \u4e2d\u6587!" \U0001f600  done ',
    "a",
    "  two spaces\tand a tab\n",
]


@pytest.mark.parametrize(
    ("folder", "prompt_format"),
    [
        ("models/stories260K-hf", MISTRAL_BOS),
        ("models/stories260K-hf", LLAMA_2),
        pytest.param("tokenizers/llama2-hf", MISTRAL_BOS, marks=pytest.mark.slow),
        pytest.param("tokenizers/llama2-hf", LLAMA_2, marks=pytest.mark.slow),
        pytest.param("tokenizers/mistral-v1-hf", MISTRAL_BOS, marks=pytest.mark.slow),
        pytest.param("tokenizers/llama3-hf", LLAMA_3, marks=pytest.mark.slow),
        pytest.param("tokenizers/qwen2-hf", CHATML, marks=pytest.mark.slow),
        pytest.param("tokenizers/gpt2-hf", PLAIN, marks=pytest.mark.slow),
    ],
)
def test_plain_text_has_the_ids_of_the_tokenizer(folder: str, prompt_format: PromptFormat, material: Path) -> None:
    """And its end of sequence behind them; LLAMA_2 has its BOS in the user's template and not in `bos`."""
    theirs = hugging_face_tokenizer(material / folder)
    eos_token = read_eos_token(material / folder)
    assert eos_token == theirs.eos_token
    encoder = text_encoder(prompt_format, eos_token, segment_tokenizer(material / folder))
    found = encoder.encode([plain_text(text) for text in REAL_TEXTS])
    for text, example in zip(REAL_TEXTS, found.examples, strict=True):
        ids = [*theirs.encode(text), theirs.eos_token_id]
        assert example.input_ids.tolist() == ids
        assert labels_of(example) == [-100, *ids[1:]]
    assert found.problems == [None, None, None]


def test_plain_text_between_its_control_tokens() -> None:
    begin, end = OURS.special_ids["<s>"], OURS.special_ids["</s>"]
    document = plain_text("a</s>\n\n")
    (example,) = text_encoder(MISTRAL_BOS, "</s>").encode([document]).examples
    content = OURS.encode_prompt([Segment("a</s>\n\n", is_template=False)])
    assert end not in content  # what a text spells out stays text
    assert example.input_ids.tolist() == [begin, *content, end]
    assert labels_of(example) == [-100, *content, end]
    (bare,) = text_encoder(PLAIN, "</s>").encode([document]).examples
    assert bare.input_ids.tolist() == [*content, end]
    assert labels_of(bare) == [-100, *content[1:], end]


@pytest.mark.parametrize("eos_token", [None, "</none>"])
def test_a_tokenizer_without_an_end_is_said_once(eos_token: str | None, caplog: pytest.LogCaptureFixture) -> None:
    encoder = text_encoder(MISTRAL_BOS, eos_token)
    encoder.encode([parse_conversation(EXCHANGE, MISTRAL_BOS)])
    assert caplog.messages == []
    found = encoder.encode([plain_text("a"), plain_text("b")])
    encoder.encode([plain_text("c")])
    assert [len(example.input_ids) for example in found.examples] == [2, 2]
    assert found.ends_with_terminator.tolist() == [False, False]
    assert caplog.messages == [
        "the tokenizer names no end-of-sequence token that is a control token of it: nothing is put behind plain "
        "texts, and the model does not learn where they end"
    ]


def rendered(*pieces: tuple[str, float]) -> Document:
    row = {"segments": [{"text": text, "weight": weight} for text, weight in pieces]}
    document = parse_row(row, VERBATIM, DatasetConfig(format="segments"))
    assert isinstance(document, Document)
    return document


def test_documents_and_conversations_together() -> None:
    conversation = parse_conversation([*EXCHANGE, *EXCHANGE], ADJACENT)
    segments = rendered(("<s>a</s>", 0), ("b</s>", 1))
    rows: list[TrainingRow] = [plain_text("x"), conversation, segments, plain_text("yy"), segments]
    encoder = text_encoder(ADJACENT, "</s>")
    found = encoder.encode(rows)
    assert found.is_windowed.tolist() == [True, False, False, True, False]
    assert found.num_prompts.tolist() == [0, 2, 0, 0, 0]
    assert found.ends_with_terminator.tolist() == [True] * 5
    assert found.straddled.tolist() == [False] * 5
    assert found.problems == [None] * 5
    for row, example in zip(rows, found.examples, strict=True):
        alone = encoder.encode([row]).examples[0]
        assert example.input_ids.tolist() == alone.input_ids.tolist()
        assert labels_of(example) == labels_of(alone)


@pytest.mark.parametrize("prompt_format", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("task", ["instruction_tuning", "causal_lm"])
def test_what_a_format_renders_is_the_same_as_pre_rendered_segments(prompt_format: PromptFormat, task: Task) -> None:
    row: Row = [
        SYSTEM,
        *EXCHANGE,
        {"role": "user", "content": "c\n"},
        {"role": "assistant", "content": "\nd", "weight": 0.5},
    ]
    conversation = parse_conversation(row, prompt_format)
    encoder = RowEncoder(prompt_format, OURS, "instruction_tuning", "all_turns")
    pieces = [(segment.text, segment.weight) for segment in encoder.segments(conversation)]
    again = RowEncoder(prompt_format, OURS, task, "all_turns").encode([rendered(*pieces)])
    expected = encoder.encode([conversation])
    assert again.examples.input_ids.tolist() == expected.examples.input_ids.tolist()
    assert again.examples.weights.tolist() == expected.examples.weights.tolist()
    assert again.straddled.tolist() == expected.straddled.tolist()
    assert again.ends_with_terminator.tolist() == expected.ends_with_terminator.tolist()


@given(
    pieces=st.lists(st.tuples(contents(*SPECIAL_TOKENS), st.sampled_from([0, 0.5, 1])), min_size=1, max_size=6).filter(
        lambda pieces: any(text for text, _ in pieces)
    )
)
@settings(max_examples=40)
def test_segments_hold_their_text_and_mark_what_is_trained(pieces: list[tuple[str, float]]) -> None:
    """One token a byte but for two line feeds, so the weights of the characters are those of the tokens."""
    bytewise = SegmentTokenizer(byte_tokenizer(SPECIAL_TOKENS).to_str())
    found = RowEncoder(VERBATIM, bytewise, "instruction_tuning", "all_turns").encode([rendered(*pieces)])
    ids, weights = [], []
    for text, weight in pieces:
        own = bytewise.encode_prompt([Segment(text)]) if text else []
        ids += own
        weights += [weight] * len(own)
    assert found.examples.input_ids.tolist() == ids
    assert found.examples.weights.tolist() == [0, *weights[1:]]


def test_a_prompt_and_its_answer_share_no_token() -> None:
    """Two line feeds are one token here; a server that tokenizes the whole text would give it."""
    found = text_encoder(PLAIN, None).encode([rendered(("a\n", 0), ("\nb", 1)), rendered(("a\n", 1), ("\nb", 0))])
    assert [len(example.input_ids) for example in found.examples] == [4, 3]
    assert found.straddled.tolist() == [True, False]


def test_a_doubled_begin_in_segments_is_noticed() -> None:
    encoder = text_encoder(MISTRAL_BOS, None)
    twice, apart = rendered(("<s><s>a", 0), ("b</s>", 1)), rendered(("<s>a", 0), ("b</s>", 1), ("<s>c", 0), ("d", 1))
    over_a_border = rendered(("<s>", 0), ("<s>a", 1))
    assert encoder.encode([twice, apart, over_a_border]).problems == [
        "two tokens for the begin of the text (BOS), one behind the other: remove one of them from the segments",
        None,
        "two tokens for the begin of the text (BOS), one behind the other: remove one of them from the segments",
    ]

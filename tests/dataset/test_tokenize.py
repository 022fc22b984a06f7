"""Segments to ids and labels, against the tokenizers themselves and against what other programs wrote down."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelPreTokenizer
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import TemplateProcessing

from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.tokenize import SegmentTokenizer, special_tokens
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import Segment, Task, render, render_prompt_segments
from tests.prompt.formats import (
    ADJACENT,
    CHATML,
    FORMATS,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    MISTRAL_BOS,
    PLAIN,
    SPECIAL_TOKENS,
    Row,
    contents,
    rows,
)
from tests.prompt.tokenizers import byte_tokenizer, hugging_face_tokenizer, segment_tokenizer, tokenizer_json

ARITHMETIC: Row = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "What's the value of 1+1?"},
    {"role": "assistant", "content": "The value is 2"},
]
# fmt: off
ARITHMETIC_IDS = [
    128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 128009, 128006, 882, 128007, 271, 3923, 596, 279,
    907, 315, 220, 16, 10, 16, 30, 128009, 128006, 78191, 128007, 271, 791, 907, 374, 220, 17, 128009,
]
# fmt: on


def segments_of(
    row: Row, prompt_format: PromptFormat, ours: SegmentTokenizer, task: Task = "instruction_tuning"
) -> list[Segment]:
    conversation = parse_conversation(row, prompt_format)
    return render(conversation, prompt_format, special_tokens=ours.special_tokens, task=task)


def example_of(row: Row, prompt_format: PromptFormat, ours: SegmentTokenizer) -> Example:
    return ours.encode([segments_of(row, prompt_format, ours)])[0]


def prompts_of(row: Row, prompt_format: PromptFormat) -> Iterator[Conversation]:
    """The conversation before each of its answers."""
    conversation = parse_conversation(row, prompt_format)
    system = conversation.messages[: len(conversation.messages) - len(conversation.turns)]
    for number in range(1, len(conversation.turns), 2):
        yield Conversation((*system, *conversation.turns[:number]))


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def is_trained(example: Example) -> list[bool]:
    return [bool(label != IGNORED_LABEL) for label in example.labels]


@pytest.mark.slow
def test_the_ids_of_llama_3(material: Path) -> None:
    ours = segment_tokenizer(material / "tokenizers" / "llama3-hf")
    example = example_of(ARITHMETIC, LLAMA_3, ours)
    assert example.input_ids.tolist() == ARITHMETIC_IDS
    assert example.labels.tolist() == [IGNORED_LABEL] * 30 + ARITHMETIC_IDS[30:]
    assert example.num_trained_tokens == 6
    prompt = parse_conversation(ARITHMETIC[:2], LLAMA_3, for_training=False)
    assert ours.encode_prompt(render_prompt_segments(prompt, LLAMA_3)) == ARITHMETIC_IDS[:30]


# Every tokenizer with formats of its own control tokens, and formats whose control tokens it does not know.
BIG = (
    ("tokenizers/llama3-hf", LLAMA_3),
    ("tokenizers/llama2-hf", LLAMA_2),
    ("tokenizers/llama2-hf", ADJACENT),
    ("tokenizers/mistral-v1-hf", MISTRAL_BOS),
    ("tokenizers/mistral-v3-hf", MISTRAL),
    ("tokenizers/mistral-v3-hf", ADJACENT),
    ("tokenizers/qwen2-hf", CHATML),
    ("tokenizers/gpt2-hf", PLAIN),
)
PAIRS = [
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in BIG),  # loading one takes a second or more
    ("models/stories260K-hf", LLAMA_2),
    ("models/stories260K-hf", PLAIN),
]
SOME_CONTROL_TOKENS = (*SPECIAL_TOKENS, "<|endoftext|>", "<unk>", "[INST]", "[/INST]", "<0x0A>")


@pytest.mark.parametrize(("folder", "prompt_format"), PAIRS)
def test_clean_conversations_equal_the_tokenizer_on_the_joined_text(
    folder: str, prompt_format: PromptFormat, material: Path
) -> None:
    ours, theirs = segment_tokenizer(material / folder), hugging_face_tokenizer(material / folder)

    @given(row=rows(contents()))
    @settings(max_examples=15)
    def check(row: Row) -> None:
        check_joined_text(row, prompt_format, ours, theirs.backend_tokenizer)

    check()


def check_joined_text(row: Row, prompt_format: PromptFormat, ours: SegmentTokenizer, theirs: Tokenizer) -> None:
    segments = segments_of(row, prompt_format, ours)
    joined = theirs.encode(text_of(segments), add_special_tokens=False)
    seams = [len(text_of(segments[:index])) for index, segment in enumerate(segments) if segment.starts_answer]
    assume(not any(token in message["content"] for message in row for token in ours.special_tokens))
    assume(not any(start < seam < end for start, end in joined.offsets for seam in seams))
    assert ours.encode([segments])[0].input_ids.tolist() == joined.ids


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_dummy_prefix_of_a_metaspace_pre_tokenizer(scheme: str, material: Path) -> None:
    description = json.loads(tokenizer_json(material / "models" / "stories260K-hf"))
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    text = json.dumps({**description, "normalizer": None, "pre_tokenizer": metaspace})
    ours, theirs = SegmentTokenizer(text), Tokenizer.from_str(text)

    @given(row=rows(contents()), prompt_format=st.sampled_from([LLAMA_2, ADJACENT, MISTRAL_BOS]))
    @settings(max_examples=15)
    def check(row: Row, prompt_format: PromptFormat) -> None:
        check_joined_text(row, prompt_format, ours, theirs)

    check()


@given(row=rows(contents()), prompt_format=st.sampled_from([LLAMA_2, ADJACENT, MISTRAL_BOS, PLAIN]))
@settings(max_examples=15)
def test_the_prefix_space_of_a_byte_level_pre_tokenizer(row: Row, prompt_format: PromptFormat) -> None:
    ours, theirs = spaced_tokenizers()
    check_joined_text(row, prompt_format, ours, theirs)


@cache
def spaced_tokenizers() -> tuple[SegmentTokenizer, Tokenizer]:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    tokenizer.pre_tokenizer = ByteLevelPreTokenizer(add_prefix_space=True, use_regex=False)
    return SegmentTokenizer(tokenizer.to_str()), tokenizer


@pytest.mark.parametrize(("folder", "prompt_format"), PAIRS)
def test_contents_are_data_and_prompts_are_prefixes(folder: str, prompt_format: PromptFormat, material: Path) -> None:
    ours = segment_tokenizer(material / folder)
    words = hugging_face_tokenizer(material / folder).convert_ids_to_tokens

    @given(row=rows(contents(*SOME_CONTROL_TOKENS)))
    @settings(max_examples=15)
    def check(row: Row) -> None:
        segments = segments_of(row, prompt_format, ours)
        example = ours.encode([segments])[0]
        ids = example.input_ids.tolist()
        # The control tokens are those of the format, in its order; every other byte of the text is there.
        parts = alternating(segments, ours)
        assert [token for token in ids if token in ours.special_ids.values()] == [
            ours.special_ids[text] for text in parts[1::2]
        ]
        assert as_written(words(ids)) == as_written_by(parts, folder)
        # What inference is given is a prefix, and the answer is trained from there on.
        for prompt in prompts_of(row, prompt_format):
            prompt_ids = ours.encode_prompt(render_prompt_segments(prompt, prompt_format))
            assert ids[: len(prompt_ids)] == prompt_ids
            assert is_trained(example)[len(prompt_ids) - 1 : len(prompt_ids) + 1] == [False, True]

    check()


def alternating(segments: list[Segment], ours: SegmentTokenizer) -> list[str]:
    """Ordinary text and the format's control tokens in turn, beginning and ending with text."""
    pattern = "|".join(sorted(map(re.escape, ours.special_tokens), key=len, reverse=True))
    parts = [""]
    for segment in segments:
        first, *others = re.split(f"({pattern})", segment.text) if segment.is_template else [segment.text]
        parts = [*parts[:-1], parts[-1] + first, *others]
    return parts


def as_written_by(parts: list[str], folder: str) -> str:
    """What the words of the tokens spell: the text, and the space that SentencePiece puts before a text."""
    name = Path(folder).name
    if name in ("llama2-hf", "mistral-v1-hf", "stories260K-hf"):  # before each part
        parts = [" " + part if part and index % 2 == 0 else part for index, part in enumerate(parts)]
    elif name == "qwen2-hf":
        parts = [unicodedata.normalize("NFC", part) for part in parts]
    return "".join(parts).replace("\u2581", " ")


def as_written(words: list[str]) -> str:
    """The text that the words of tokens spell, control tokens and dummy prefixes with it."""
    if any("\u0120" in word or "\u010a" in word for word in words):  # the space and the line feed of byte-level words
        return str(ByteLevelDecoder().decode(words)).replace("\u2581", " ")
    encoded = [bytes.fromhex(word[3:5]) if BYTE_WORD.fullmatch(word) else word.encode() for word in words]
    return b"".join(encoded).decode().replace("\u2581", " ")


BYTE_WORD = re.compile("<0x[0-9A-F]{2}>")
OUR_BYTES = SegmentTokenizer(byte_tokenizer(SPECIAL_TOKENS).to_str())


@given(
    row=rows(contents(*SPECIAL_TOKENS)),
    prompt_format=st.sampled_from(list(FORMATS.values())),
    task=st.sampled_from(["instruction_tuning", "causal_lm"]),
)
@settings(max_examples=40)
def test_a_token_is_trained_where_its_text_is(row: Row, prompt_format: PromptFormat, task: Task) -> None:
    """With one token a byte the expected mask needs no tokenizer."""
    segments = segments_of(row, prompt_format, OUR_BYTES, task)
    example = OUR_BYTES.encode([segments])[0]
    text, mask = expected_bytes(segments)
    names = {number: token.encode() for token, number in OUR_BYTES.special_ids.items()}
    ids = example.input_ids.tolist()
    assert b"".join(names.get(token, b"?") for token in ids).replace(b"?", b"") == b"".join(
        part for part in text if len(part) > 1
    )
    assert len(ids) == len(text)
    assert is_trained(example) == [False, *mask[1:]]
    assert [label for label in example.labels if label != IGNORED_LABEL] == [
        token for token, trained in zip(ids, is_trained(example), strict=True) if trained
    ]


def expected_bytes(segments: list[Segment]) -> tuple[list[bytes], list[bool]]:
    """What stands at each position, a byte or a control token of the format, and whether it is trained."""
    text: list[bytes] = []
    mask: list[bool] = []
    for segment in segments:
        parts = alternating([segment], OUR_BYTES)
        for index, part in enumerate(parts):
            units = [part.encode()] if index % 2 else [bytes([byte]) for byte in part.encode()]
            text += units
            mask += [segment.trained] * len(units)
    return text, mask


SPACE_AT_THE_END = PLAIN.model_copy(update={"assistant": "### Response:\n{instruction} ", "user": "{instruction}\n"})


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_mask_does_not_depend_on_trimmed_offsets(trim_offsets: bool) -> None:
    """Post-processors of published tokenizers move the offset of a token past the spaces that it begins with."""
    tokenizer = byte_tokenizer([], merges=[("\u0120", "\u0120")])
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=trim_offsets)
    ours = SegmentTokenizer(tokenizer.to_str())
    row: Row = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    example = example_of(row, SPACE_AT_THE_END, ours)
    answers = [ours.encode_prompt([Segment("assistant ")])] * 2
    trained = [token for token, flag in zip(example.input_ids.tolist(), is_trained(example), strict=True) if flag]
    assert trained == answers[0] + answers[1]


def test_a_token_across_the_end_of_an_answer_is_trained_if_its_first_character_is() -> None:
    tokenizer = byte_tokenizer([], merges=[("\u010a", "\u010a")])  # two line feeds are one token
    ours = SegmentTokenizer(tokenizer.to_str())
    prompt_format = PLAIN.model_copy(update={"user": "\n{instruction}", "assistant": ":{instruction}\n"})
    prompt_format = prompt_format.model_copy(update={"trailing_assistant": ":", "system": "{instruction}"})
    row: Row = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    example = example_of(row, prompt_format, ours)
    words = tokenizer.decode_batch([[token] for token in example.input_ids.tolist()])
    assert words == ["\n", "u", ":", "a", "\n\n", "u", ":", "a", "\n"]
    assert is_trained(example) == [False, False, False, True, True, False, False, True, True]


def test_rows_do_not_depend_on_their_batch(material: Path) -> None:
    ours = segment_tokenizer(material / "tokenizers" / "llama2-hf")
    with (material / "data" / "chat" / "oasst1-threads.jsonl").open(encoding="utf-8") as file:
        batch = [segments_of(json.loads(next(file))["messages"], LLAMA_2, ours) for _ in range(5)]
    together = ours.encode(batch)
    assert len(ours.encode([])) == 0
    for segments, example in zip(batch, together, strict=True):
        alone = ours.encode([segments])[0]
        assert (alone.input_ids.tolist(), alone.labels.tolist()) == (
            example.input_ids.tolist(),
            example.labels.tolist(),
        )
        assert {example.input_ids.dtype, example.labels.dtype} == {np.dtype(np.int32)}


def test_nothing_but_special_tokens_is_special() -> None:
    tokenizer = byte_tokenizer(["<s>", "</s>"])
    tokenizer.add_tokens(["<plain>"])
    text = tokenizer.to_str()
    assert special_tokens(text) == {"</s>": 256, "<s>": 257}
    ours = SegmentTokenizer(text)
    assert ours.special_ids == special_tokens(text)
    assert ours.special_tokens == {"<s>", "</s>"}
    assert ours.encode_prompt([Segment("<s><plain>"), Segment("<s><plain>", is_template=False)]) == [
        257,
        258,
        *tokenizer.encode("<").ids,
        *tokenizer.encode("s").ids,
        *tokenizer.encode(">").ids,
        258,
    ]


def test_contents_may_hold_control_tokens_where_the_format_says_so() -> None:
    row: Row = [{"role": "user", "content": "a<s>"}, {"role": "assistant", "content": "b</s>"}]
    opened = ADJACENT.model_copy(update={"parse_special_in_content": True})
    ids = example_of(row, opened, OUR_BYTES).input_ids.tolist()
    letters = OUR_BYTES.encode_prompt([Segment("ab")])
    begin, end = OUR_BYTES.special_ids["<s>"], OUR_BYTES.special_ids["</s>"]
    assert ids == [begin, letters[0], begin, end, letters[1], end, end]


def test_settings_of_a_published_tokenizer_that_change_texts_are_off() -> None:
    tokenizer = byte_tokenizer(["<s>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert len(SegmentTokenizer(tokenizer.to_str()).encode_prompt([Segment("abc")])) == 3


GREEDY = PromptFormat(  # as Phi 3 writes it
    system="<|system|>\n{instruction}<|end|>\n",
    user="<|user|>\n{instruction}<|end|>\n",
    assistant="<|assistant|>\n{instruction}<|end|>\n",
    trailing_assistant="<|assistant|>\n",
    strip_whitespace=False,
)


@cache
def greedy_tokenizers() -> tuple[SegmentTokenizer, Tokenizer]:
    """Control tokens that take the white space beside them, and the prefix of a SentencePiece tokenizer."""
    tokenizer = byte_tokenizer([])
    tokenizer.pre_tokenizer = ByteLevelPreTokenizer(add_prefix_space=True, use_regex=False)
    flags = {"<|end|>": (True, True), "<|user|>": (False, True), "<|assistant|>": (False, True)}
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, lstrip=left, rstrip=right) for text, (left, right) in flags.items()]
    )
    tokenizer.add_special_tokens([AddedToken("<|system|>", normalized=False)])
    return SegmentTokenizer(tokenizer.to_str()), tokenizer


@given(row=rows(contents(" ", "\n", "\u3000", "\x1c", "\u200b")))
@settings(max_examples=40)
def test_white_space_beside_control_tokens_that_take_it(row: Row) -> None:
    ours, theirs = greedy_tokenizers()
    # What an answer begins with stands behind the seam, and so is the answer's own.
    row = [{**m, "content": m["content"].strip() if m["role"] == "assistant" else m["content"]} for m in row]
    check_joined_text(row, GREEDY, ours, theirs)


def test_white_space_behind_the_cue_of_an_answer_stays() -> None:
    ours, _ = greedy_tokenizers()
    row: Row = [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": " b "}]
    example = example_of(row, GREEDY, ours)
    user, assistant, end = (ours.special_ids[token] for token in ("<|user|>", "<|assistant|>", "<|end|>"))
    letters = {letter: ours.encode_prompt([Segment(letter)]) for letter in ("a", " b")}
    assert example.input_ids.tolist() == [user, *letters["a"], end, assistant, *letters[" b"][-2:], end]
    prompt = parse_conversation(row[:1], GREEDY, for_training=False)
    assert ours.encode_prompt(render_prompt_segments(prompt, GREEDY)) == [user, *letters["a"], end, assistant]


def test_what_a_tokenizer_puts_before_a_text() -> None:
    tokenizer = byte_tokenizer(["<s>", "</s>"])
    assert SegmentTokenizer(tokenizer.to_str()).leading_special_ids == frozenset()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair=None, special_tokens=[("<s>", 257), ("</s>", 256)]
    )
    assert SegmentTokenizer(tokenizer.to_str()).leading_special_ids == {257}

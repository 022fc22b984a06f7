"""The exported chat template, run by `transformers`: same text, ids and mask as ours, same refusals."""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from llmforge.config.families import FAMILIES
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.chat_template import chat_template
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import render, render_prompt
from tests.prompt.formats import (
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

FAMILY_FORMATS = {family.name: family.prompt_format for family in FAMILIES if family.prompt_format is not None}
"""The formats that jobs get by themselves."""
FAMILY_TOKENS = frozenset(
    token
    for prompt_format in FAMILY_FORMATS.values()
    for text in (prompt_format.bos, prompt_format.system, prompt_format.user, prompt_format.assistant)
    for token in re.findall(r"<[|\uff5c].*?[|\uff5c]>|<bos>|<(?:start|end)_of_turn>", text)
)
TOKENS = SPECIAL_TOKENS | FAMILY_TOKENS
BYTES = byte_tokenizer(TOKENS)
OURS = SegmentTokenizer(BYTES.to_str())


@cache
def serving_tokenizer(prompt_format: PromptFormat) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a byte, with the template as an export would give it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=BYTES)
    tokenizer.chat_template = chat_template(prompt_format, TOKENS)
    return tokenizer


def check_training(
    row: Row, prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerFast, ours: SegmentTokenizer
) -> None:
    segments = render(parse_conversation(row, prompt_format), prompt_format, special_tokens=ours.special_tokens)
    assert tokenizer.apply_chat_template(row, tokenize=False) == "".join(segment.text for segment in segments)
    theirs = tokenizer.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
    example = ours.encode([segments])[0]
    assert example.input_ids.tolist() == theirs["input_ids"]
    assert (example.labels != IGNORED_LABEL).astype(int).tolist() == theirs["assistant_masks"]


def as_prompt(row: Row) -> Row:
    """The row without its last answer."""
    last = max(index for index, message in enumerate(row) if message["role"] == "assistant")
    return row[:last] + row[last + 1 :]


def ends_with_ascii(row: Row) -> bool:
    """`transformers` finds only the first token of a character, and so its mask ends before the others."""
    return all(message["content"][-1].isascii() for message in row)


def check_prompt(row: Row, prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = parse_conversation(row, prompt_format, for_training=False)
    served = tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True)
    assert served == render_prompt(prompt.messages, prompt_format)


@given(prompt_format=st.sampled_from(list(FORMATS.values())), row=rows(contents()))
@settings(max_examples=70)
def test_random_conversations(prompt_format: PromptFormat, row: Row) -> None:
    tokenizer = serving_tokenizer(prompt_format)
    if prompt_format != VERBATIM or ends_with_ascii(row):
        check_training(row, prompt_format, tokenizer, OURS)
    check_prompt(as_prompt(row), prompt_format, tokenizer)


@pytest.mark.parametrize("name", FAMILY_FORMATS)
def test_every_family(name: str) -> None:
    prompt_format = FAMILY_FORMATS[name]
    tokenizer = serving_tokenizer(prompt_format)

    @given(row=rows(contents()))
    @settings(max_examples=3)
    def check(row: Row) -> None:
        check_training(row, prompt_format, tokenizer, OURS)
        check_prompt(as_prompt(row), prompt_format, tokenizer)

    check()


TOOLS = LLAMA_3.model_copy(update={"tool": "<|start_header_id|>ipython<|end_header_id|>\n\n{instruction}<|eot_id|>"})
TOOLS_LAST = MISTRAL_LAST.model_copy(update={"tool": "[TOOL {{0}}]{instruction}</s>", "strip_whitespace": False})


@st.composite
def rows_with_tools(draw: st.DrawFn) -> Row:
    """Training rows in which one to three tool messages may stand in the place of a later user message."""
    row: Row = []
    for message in draw(rows(contents())):
        if message["role"] == "user" and any(earlier["role"] == "assistant" for earlier in row) and draw(st.booleans()):
            row += [{"role": "tool", "content": text} for text in draw(st.lists(contents(), min_size=1, max_size=3))]
        else:
            row.append(message)
    return row


@given(prompt_format=st.sampled_from([TOOLS, TOOLS_LAST]), row=rows_with_tools())
@settings(max_examples=40)
def test_tool_messages(prompt_format: PromptFormat, row: Row) -> None:
    tokenizer = serving_tokenizer(prompt_format)
    check_training(row, prompt_format, tokenizer, OURS)
    check_prompt(as_prompt(row), prompt_format, tokenizer)


@given(row=rows(contents()))
@settings(max_examples=25)
def test_the_system_message_in_the_last_user_turn(row: Row) -> None:
    tokenizer = serving_tokenizer(MISTRAL_LAST)
    check_training(row, MISTRAL_LAST, tokenizer, OURS)
    check_prompt(as_prompt(row), MISTRAL_LAST, tokenizer)


@given(row=rows(contents(*SPECIAL_TOKENS)))
@settings(max_examples=25)
def test_control_tokens_in_contents_render_as_they_are(row: Row) -> None:
    segments = render(parse_conversation(row, LLAMA_3), LLAMA_3)
    served = serving_tokenizer(LLAMA_3).apply_chat_template(row, tokenize=False)
    assert served == "".join(segment.text for segment in segments)


SYSTEM_VARIANTS = {
    "dropped": LLAMA_3,
    "kept": LLAMA_3.model_copy(update={"add_system_tags_even_if_message_is_empty": True}),
    "kept inside the user turn": LLAMA_2.model_copy(update={"add_system_tags_even_if_message_is_empty": True}),
    "default": LLAMA_3.model_copy(update={"default_system_message": " be {{ kind }} "}),
    "default as it is": LLAMA_3.model_copy(update={"default_system_message": " be kind", "strip_whitespace": False}),
}


@pytest.mark.parametrize("system", [None, "", " \n", " be quick "])
@pytest.mark.parametrize("prompt_format", SYSTEM_VARIANTS.values(), ids=SYSTEM_VARIANTS)
def test_empty_and_default_system_messages(prompt_format: PromptFormat, system: str | None) -> None:
    row: Row = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    if system is not None:
        row.append({"role": "system", "content": system})
    check_training(row, prompt_format, serving_tokenizer(prompt_format), OURS)


def test_a_prompt_that_ends_with_a_tool_has_the_system_text_in_the_last_user_turn() -> None:
    row = [SYSTEM, USER, ANSWER, {**USER, "content": "sum?"}, ANSWER, {"role": "tool", "content": "3"}]
    served = serving_tokenizer(TOOLS_LAST).apply_chat_template(row, tokenize=False, add_generation_prompt=True)
    assert served == ("<s>[INST] hi [/INST] hello</s>[INST] be kind + sum? [/INST] hello</s>[TOOL {0}]3</s>")
    check_prompt(row, TOOLS_LAST, serving_tokenizer(TOOLS_LAST))


def test_all_white_space_that_python_strips_is_trimmed() -> None:
    characters = map(chr, range(sys.maxunicode + 1))
    space = "".join(character for character in characters if character.isspace() or character in "\u200b\ufeff\x00")
    for edge in (space, space[::-1]):
        row: Row = [{"role": role, "content": f"{edge}x{edge}"} for role in ("system", "user", "assistant")]
        check_training(row, LLAMA_3, serving_tokenizer(LLAMA_3), OURS)


@pytest.mark.parametrize("keys", [{"weight": 0}, {"weight": 0.5}, {"train": False}])
def test_weights_do_not_change_the_text(keys: dict[str, float]) -> None:
    row: Row = [USER, {**ANSWER, **keys}]
    segments = render(parse_conversation(row, LLAMA_3), LLAMA_3)
    served = serving_tokenizer(LLAMA_3).apply_chat_template(row, tokenize=False)
    assert served == "".join(segment.text for segment in segments)
    assert served == serving_tokenizer(LLAMA_3).apply_chat_template([USER, ANSWER], tokenize=False)


@pytest.mark.parametrize("prompt_format", [LLAMA_3, LLAMA_2, CHATML])
def test_a_begun_answer_can_be_continued(prompt_format: PromptFormat) -> None:
    """`transformers` renders it as training text, and cuts that behind the content."""
    begun = serving_tokenizer(prompt_format).apply_chat_template(
        [USER, {**ANSWER, "content": "hel"}], tokenize=False, continue_final_message=True
    )
    prompt = render_prompt(parse_conversation([USER], prompt_format, for_training=False).messages, prompt_format)
    head = " " if prompt_format == LLAMA_2 else ""
    assert begun == f"{prompt}{head}hel"


@pytest.mark.parametrize("prompt_format", [VERBATIM, VERBATIM.model_copy(update={"strip_whitespace": False})])
def test_verbatim_formats_take_empty_messages(prompt_format: PromptFormat) -> None:
    row: Row = [{"role": "user", "content": ""}, {"role": "assistant", "content": " "}]
    text = "".join(segment.text for segment in render(parse_conversation(row, prompt_format), prompt_format))
    assert serving_tokenizer(prompt_format).apply_chat_template(row, tokenize=False) == text


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}
ORDER = "after the system message, user and assistant take turns and the user begins"
TOOL_CALLS = "a message has tool_calls, which have no place here"
NOT_TEXT = "the content of a message is not a string"


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([SYSTEM, USER, SYSTEM], "at most one system message is allowed"),
        ([SYSTEM], "there is no user message"),
        ([USER, USER], ORDER),
        ([{"role": "tool", "content": "x"}, ANSWER, USER], ORDER),
        ([{**USER, "content": " \t"}], "a message has empty content"),
        ([USER, {**ANSWER, "content": ""}, USER], "a message has empty content"),
        ([{**USER, "content": [{"type": "text", "text": "hi"}]}], NOT_TEXT),
        ([{**SYSTEM, "content": None}, USER], NOT_TEXT),
        ([USER, {"role": "assistant", "tool_calls": []}, USER], NOT_TEXT),
        ([USER, {"role": "assistant", "tool_calls": [{}]}, USER], TOOL_CALLS),
        ([USER, {**ANSWER, "tool_calls": [{}]}, USER], TOOL_CALLS),
        ([USER, ANSWER, {"role": "tool", "content": "x"}], ORDER),
    ],
)
def test_refusals(row: Row, message: str, generation: bool) -> None:
    with pytest.raises(TemplateError) as caught:
        serving_tokenizer(LLAMA_3).apply_chat_template(row, tokenize=False, add_generation_prompt=generation)
    assert str(caught.value) == message
    with pytest.raises(DataError):
        parse_conversation(row, LLAMA_3, for_training=not generation)


TOOL = {"role": "tool", "content": "3"}


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([TOOL, ANSWER, USER], ORDER),
        ([SYSTEM, TOOL, ANSWER], ORDER),
        ([USER, TOOL, ANSWER], ORDER),
        ([USER, ANSWER, TOOL, USER], ORDER),
        ([USER, ANSWER, USER, TOOL], ORDER),
        ([USER, ANSWER, {"role": "function", "content": "3"}], ORDER),
        ([USER, ANSWER, {**TOOL, "content": " "}], "a message has empty content"),
        ([USER, ANSWER, {"role": "tool"}], NOT_TEXT),
    ],
)
def test_refusals_of_a_format_with_tools(row: Row, message: str, generation: bool) -> None:
    with pytest.raises(TemplateError) as caught:
        serving_tokenizer(TOOLS).apply_chat_template(row, tokenize=False, add_generation_prompt=generation)
    assert str(caught.value) == message
    with pytest.raises(DataError):
        parse_conversation(row, TOOLS, for_training=not generation)


def test_a_prompt_ends_with_the_user() -> None:
    with pytest.raises(TemplateError) as caught:
        serving_tokenizer(TOOLS).apply_chat_template([USER, ANSWER], tokenize=False, add_generation_prompt=True)
    assert str(caught.value) == "a prompt ends with the user's message"
    with pytest.raises(DataError):
        parse_conversation([USER, ANSWER], TOOLS, for_training=False)


@pytest.mark.parametrize("prompt_format", [TOOLS, CHATML, MISTRAL_LAST], ids=["tools", "chatml", "system in last user"])
@pytest.mark.parametrize("row", [[USER], [SYSTEM, USER, ANSWER, USER]], ids=["one turn", "two turns"])
def test_a_prompt_without_its_cue(row: Row, prompt_format: PromptFormat) -> None:
    """Other programs ask for it; a training conversation would end with an answer."""
    tokenizer = serving_tokenizer(prompt_format)
    messages = parse_conversation(row, prompt_format, for_training=False).messages
    text = tokenizer.apply_chat_template(row, tokenize=False)
    assert text + prompt_format.trailing_assistant == render_prompt(messages, prompt_format)


@pytest.mark.parametrize("prompt_format", [LLAMA_3, CHATML, LLAMA_2, MISTRAL_LAST])
def test_the_end_of_a_turn_is_seen_to_be_trained_in_front_of_another_turn(prompt_format: PromptFormat) -> None:
    """What TRL looks at before it trains on answers only: the last masked token of an answer that a user follows."""
    tokenizer = serving_tokenizer(prompt_format)
    output = tokenizer.apply_chat_template([USER, ANSWER, USER], return_dict=True, return_assistant_tokens_mask=True)
    masked = [token for token, is_in in zip(output["input_ids"], output["assistant_masks"], strict=True) if is_in]
    assert masked[-1] in tokenizer.get_added_vocab().values()


REAL = {
    "llama3-hf": LLAMA_3,
    "llama2-hf": LLAMA_2,
    "mistral-v3-hf": MISTRAL_BOS,
    "gpt2-hf": PLAIN,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prompt_format"), REAL.items(), ids=list(REAL))
def test_real_conversations_through_real_tokenizers(name: str, prompt_format: PromptFormat, material: Path) -> None:
    folder = material / "tokenizers" / name
    ours, tokenizer = segment_tokenizer(folder), hugging_face_tokenizer(folder)
    template = chat_template(prompt_format, ours.special_tokens)
    with (material / "data" / "chat" / "oasst1-threads.jsonl").open(encoding="utf-8") as file:
        conversations = [json.loads(next(file))["messages"] for _ in range(6)]
    tokenizer.chat_template = template
    for row in conversations:
        check_training(row, prompt_format, tokenizer, ours)
        prompt = tokenizer.apply_chat_template(as_prompt(row), add_generation_prompt=True, return_dict=False)
        segments = render(parse_conversation(row, prompt_format), prompt_format, special_tokens=ours.special_tokens)
        assert ours.encode([segments])[0].input_ids[: len(prompt)].tolist() == prompt

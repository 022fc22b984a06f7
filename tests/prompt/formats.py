"""Prompt formats and random conversations for tests of several packages."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llmforge.config.prompt_format import PromptFormat

Row = list[dict[str, Any]]

LLAMA_3 = PromptFormat(
    bos="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{instruction}<|eot_id|>",
    trailing_assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
LLAMA_2 = PromptFormat(
    system="<<SYS>>\n{instruction}\n<</SYS>>\n\n",
    user="[INST] {system}{instruction} [/INST]",
    assistant=" {instruction} </s><s>",
    system_in_user=True,
)
MISTRAL = PromptFormat(
    system="{instruction} + ",
    user="[INST] {system}{instruction} [/INST]",
    assistant="{instruction}</s> ",
    system_in_user=True,
)
MISTRAL_BOS = MISTRAL.model_copy(update={"bos": "<s>", "assistant": " {instruction}</s>"})
MISTRAL_LAST = MISTRAL_BOS.model_copy(update={"system_in_last_user": True})
VERBATIM = PromptFormat(system="{instruction}", user="{instruction}", assistant="{instruction}")
CHATML = PromptFormat(
    system="<|im_start|>system\n{instruction}<|im_end|>\n",
    user="<|im_start|>user\n{instruction}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{instruction}<|im_end|>\n",
    trailing_assistant="<|im_start|>assistant\n",
    default_system_message="You are a helpful assistant.",
    strip_whitespace=False,
)
# A turn ends with a control token, and the next begins right behind it.
ADJACENT = PromptFormat(bos="<s>", system="{instruction}</s>", user="{instruction}</s>", assistant="{instruction}</s>")
# Without any control token, so that trained and other text share runs.
PLAIN = PromptFormat(
    system="{instruction}\n\n",
    user="### Instruction:\n{instruction}\n\n",
    assistant="### Response:\n{instruction}\n\n",
    trailing_assistant="### Response:\n",
    add_system_tags_even_if_message_is_empty=True,
)
# Braces, quotes, backslashes, control characters and characters beyond the basic plane in the templates themselves.
AWKWARD = PromptFormat(
    bos="{{}}",
    system="{{%- set {instruction} -%}}\\n\n",
    user="{{{{ '\"{instruction}\"' }}}}\r\n\t",
    assistant="{{# é😀\u2028\x01 #}}{instruction}<|end|>\\",
    trailing_assistant="{# é😀\u2028",
)

FORMATS = {
    "llama 3": LLAMA_3,
    "llama 2": LLAMA_2,
    "mistral": MISTRAL,
    "mistral with bos": MISTRAL_BOS,
    "verbatim": VERBATIM,
    "chatml": CHATML,
    "adjacent": ADJACENT,
    "plain": PLAIN,
    "awkward": AWKWARD,
}
SPECIAL_TOKENS = frozenset(
    {
        "<s>",
        "</s>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|end|>",
    }
)

_PARTS = (
    *"aZ7 .,'\"\n\t{}[]<>|\\#%é中\u00a0\u0301\U0001f600",
    *("  ", "\r\n", "{{", "}}", "{instruction}", "{system}", "{{ role }}", "{% raw %}", "### Response:\n", "[/INST]"),
    *("1234", "the ", " and", "don't", "()\n"),
)


def contents(*more_parts: str) -> st.SearchStrategy[str]:
    """Texts that are not blank, of parts that are awkward to place or to tokenize."""
    parts = st.sampled_from((*_PARTS, *more_parts)) | st.characters(exclude_categories=["Cs"])
    return st.lists(parts, min_size=1, max_size=8).map("".join).filter(str.strip)


@st.composite
def rows(draw: st.DrawFn, content: st.SearchStrategy[str]) -> Row:
    """The messages of a training row: one to three exchanges, a system message anywhere or nowhere."""
    texts = draw(st.lists(content, min_size=2, max_size=7))
    system = texts.pop() if len(texts) % 2 else None
    row: Row = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    if system is not None:
        row.insert(draw(st.integers(0, len(row))), {"role": "system", "content": system})
    return row

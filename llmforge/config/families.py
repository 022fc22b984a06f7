"""What is known about families of models: one table from the name of a model to its prompt format and defaults.

A name is the last part of a hub id or of a local folder. A format stands here only if its text equals that of an
independent reference (Meta's code, mistral-common, the templates published with the models); `difference` says where it
is not the same. A model whose name fits no row needs `generation_config.prompt_format`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmforge.config.prompt_format import PromptFormat

_LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Models that share a prompt format."""

    name: str
    pattern: str
    """Regular expression for the whole name, upper and lower case alike."""
    prompt_format: PromptFormat
    stopping_sequences: tuple[str, ...]
    context_length: int | None
    """Longest sequence in tokens, where the family has one; the model's own `config.json` goes before."""
    lora_target_modules: tuple[str, ...] = _LINEAR_LAYERS
    difference: str = ""
    """Where the text differs from the reference, and why."""


def _llama3_format(strip_whitespace: bool) -> PromptFormat:
    return PromptFormat(
        bos="<|begin_of_text|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{instruction}<|eot_id|>",
        trailing_assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        strip_whitespace=strip_whitespace,
    )


def _chatml_format(default_system_message: str = "") -> PromptFormat:
    return PromptFormat(
        system="<|im_start|>system\n{instruction}<|im_end|>\n",
        user="<|im_start|>user\n{instruction}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{instruction}<|im_end|>\n",
        trailing_assistant="<|im_start|>assistant\n",
        default_system_message=default_system_message,
        strip_whitespace=False,
    )


_LLAMA_2 = PromptFormat(
    system="<<SYS>>\n{instruction}\n<</SYS>>\n\n",
    user="<s>[INST] {system}{instruction} [/INST]",
    assistant=" {instruction} </s>",
    system_in_user=True,
)
_MISTRAL_V1 = PromptFormat(
    bos="<s>",
    system="{instruction}\n\n",
    user="[INST] {system}{instruction} [/INST]",
    assistant=" {instruction}</s>",
    system_in_user=True,
    strip_whitespace=False,
)
_MISTRAL_V3 = _MISTRAL_V1.model_copy(update={"user": "[INST] {system}{instruction}[/INST]"})
_ZEPHYR = PromptFormat(
    system="<|system|>\n{instruction}</s>\n",
    user="<|user|>\n{instruction}</s>\n",
    assistant="<|assistant|>\n{instruction}</s>\n",
    trailing_assistant="<|assistant|>\n",
    strip_whitespace=False,
)
_GEMMA = PromptFormat(
    bos="<bos>",
    system="{instruction}\n\n",
    user="<start_of_turn>user\n{system}{instruction}<end_of_turn>\n",
    assistant="<start_of_turn>model\n{instruction}<end_of_turn>\n",
    trailing_assistant="<start_of_turn>model\n",
    system_in_user=True,
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="Llama 3",
        pattern=r"(meta-)?llama-3-(8|70)b(-instruct)?",
        prompt_format=_llama3_format(strip_whitespace=True),
        stopping_sequences=("<|eot_id|>", "<|end_of_text|>"),
        context_length=8192,
    ),
    Family(
        name="Llama 3.1, 3.2, 3.3",
        pattern=r"(meta-)?llama-3\.(1-(8|70|405)|2-[13]|3-70)b(-instruct)?",
        prompt_format=_llama3_format(strip_whitespace=False),
        stopping_sequences=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        context_length=131072,
        difference="the hub's template adds a system header with dates to every conversation; Meta's own code does not",
    ),
    Family(
        name="Llama 2",
        pattern=r"llama-2-(7|13|70)b(-chat)?(-hf)?",
        prompt_format=_LLAMA_2,
        stopping_sequences=("</s>",),
        context_length=4096,
    ),
    Family(
        name="Mistral v0.1, v0.2",
        pattern=r"mistral-7b(-instruct)?-v0\.[12]",
        prompt_format=_MISTRAL_V1,
        stopping_sequences=("</s>",),
        context_length=32768,
        difference="the hub's v0.2 template leaves out the space before an answer; mistral-common has it",
    ),
    Family(
        name="Mistral v0.3",
        pattern=r"mistral-7b(-instruct)?-v0\.3",
        prompt_format=_MISTRAL_V3,
        stopping_sequences=("</s>",),
        context_length=32768,
        difference="mistral-common puts the system message into the last user turn; here it stands in the first, so "
        "that the prompt of an earlier turn is a prefix of the conversation",
    ),
    Family(
        name="Qwen2",
        pattern=r"qwen2-(0\.5|1\.5|7|72)b(-instruct)?",
        prompt_format=_chatml_format("You are a helpful assistant."),
        stopping_sequences=("<|im_end|>", "<|endoftext|>"),
        context_length=32768,
    ),
    Family(
        name="Qwen2.5",
        pattern=r"qwen2\.5-(0\.5|1\.5|3|7|14|32|72)b(-instruct)?",
        prompt_format=_chatml_format("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        stopping_sequences=("<|im_end|>", "<|endoftext|>"),
        context_length=32768,
    ),
    Family(
        name="Zephyr",
        pattern=r"zephyr-7b-(alpha|beta)",
        prompt_format=_ZEPHYR,
        stopping_sequences=("</s>",),
        context_length=32768,
    ),
    Family(
        name="Gemma",
        pattern=r"gemma-((1\.1-)?[27]b|2-(2|9|27)b)(-it)?",
        prompt_format=_GEMMA,
        stopping_sequences=("<end_of_turn>", "<eos>"),
        context_length=8192,
        difference="the templates of Gemma 1 and 2 refuse a system message; here it opens the first user turn, as in "
        "Gemma 3",
    ),
    Family(
        name="ChatML",
        pattern=r"(.*[-_.])?chatml([-_.].*)?",
        prompt_format=_chatml_format(),
        stopping_sequences=("<|im_end|>",),
        context_length=None,
        lora_target_modules=(),
    ),
)


def find_family(model_id: str) -> Family | None:
    """The row whose pattern fits the last part of a hub id or folder; None where no row does."""
    name = model_id.rstrip("/").split("/")[-1]
    for family in FAMILIES:
        if re.fullmatch(family.pattern, name, re.IGNORECASE):
            return family
    return None

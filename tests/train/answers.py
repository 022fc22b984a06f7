"""Pairs of answers and models that are the same everywhere: weights by a formula, no random numbers.

Fixed numbers of other programs were computed with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 67


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and of two answers to it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


ROWS = [
    Row([1, 5, 9, 13], [17, 21, 25, 2], [18, 2]),
    Row([1, 40], [41, 42, 2], [43, 44, 45, 46, 47, 2]),
    Row([1, 7, 8, 9, 10, 11, 12], [30, 2], [31, 32, 2]),
    Row([1, 60, 61], [62, 63, 64, 65, 66, 2], [5, 6, 7, 2]),
    Row([1, 22, 23, 24], [25, 2], [26, 2]),
]


def fixed_model(phase: float) -> LlamaForCausalLM:
    """A tiny Llama; another `phase` gives another one of the same kind."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "norm" in name:
                continue
            values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (0.7 + 0.01 * number) + phase)
            parameter.copy_((0.3 if "embed" in name or "lm_head" in name else 0.12) * values.view_as(parameter))
    return model


@dataclass(frozen=True)
class RatedRow:
    """Token ids of a prompt, of an answer to it, and of an answer to another one."""

    prompt: list[int]
    answer: list[int]
    mismatched: list[int]
    is_desirable: bool


RATED_ROWS = [
    RatedRow(row.prompt, answer, other.rejected if is_desirable else other.chosen, is_desirable)
    for row, other in zip(ROWS, [*ROWS[1:], ROWS[0]], strict=True)
    for answer, is_desirable in ((row.chosen, True), (row.rejected, False))
][:9]
"""The answers of the pairs but for the last, so that there are more good ones than bad ones."""

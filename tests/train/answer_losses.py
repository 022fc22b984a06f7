"""What tests of the losses of answers share: models with an attention, log-probabilities by the definition, and a loss
with its measures and gradients over several batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.models.attention import use_attention
from llmforge.train.batches import Batch, Layout
from llmforge.train.preference import PreferenceLoss

Gradients = dict[str, torch.Tensor]


def conversation(prompt: list[int], answer: list[int]) -> Example:
    """A prompt and its answer, which is trained."""
    labels = [IGNORED_LABEL] * len(prompt) + answer
    return Example(np.array(prompt + answer, np.int32), np.array(labels, np.int32))


def with_attention(model: LlamaForCausalLM, layout: Layout) -> LlamaForCausalLM:
    """The model with the attention that a layout needs."""
    use_attention(model, "sdpa_per_document" if layout.by_documents else "sdpa", device=torch.device("cpu"))
    return model


def answer_sum(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """The log-probability of an answer by the definition, through the whole logits."""
    logits = model(input_ids=torch.tensor(example.input_ids[None].astype(np.int64))).logits[0, :-1]
    labels = torch.tensor(example.labels[1:].astype(np.int64))
    each = torch.log_softmax(logits.float(), dim=-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return each[labels != IGNORED_LABEL].sum()


@dataclass(frozen=True)
class Computed:
    """The loss of all batches, summed; the sums of its measures; and its gradients."""

    loss: float
    measures: dict[str, float]
    gradients: Gradients


def computed(loss: PreferenceLoss, batches: Sequence[Batch]) -> Computed:
    """Of batches, one after another."""
    loss.zero_grad()
    total, measures = 0.0, torch.zeros(len(loss.measure_names), dtype=torch.float64)
    for batch in batches:
        value, measured = loss(batch)
        value.backward()
        total += value.item()
        measures += measured
    gradients = {name: p.grad.clone() for name, p in loss.model.named_parameters() if p.grad is not None}
    return Computed(total, dict(zip(loss.measure_names, measures.tolist(), strict=True)), gradients)


def assert_same(one: Computed, other: Computed, tolerance: float = 2e-6) -> None:
    """But for rounding."""
    assert one.loss == pytest.approx(other.loss, rel=tolerance)
    assert one.measures == pytest.approx(other.measures, rel=tolerance)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        scale = other.gradients[name].abs().max().item()
        assert scale > 0, f"{name} has no gradient, so comparing it proves nothing"
        assert (gradient - other.gradients[name]).abs().max().item() <= 10 * tolerance * scale, name

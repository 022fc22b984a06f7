"""What is proven on the real model, by its own losses, before it is trained.

In: a function that gives the loss of a batch, as training computes it. Out: nothing, or a choice, or a `ModelError`.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.shards import Sample
from llmforge.errors import ModelError
from llmforge.train.batches import Batch, Layout, collate
from llmforge.train.losses import NextTokenLoss

_LOG = logging.getLogger(__name__)

_EXAMPLE_TOKENS = 16
_ROUNDING = 0.1
"""Of the influence of a text on what follows it. Rounding may move a loss by far less, since experts that get other
tokens round otherwise; an example that sees another moves by all of it."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative, of two ways to compute the same logits."""

Evaluate = Callable[[Batch], float]
"""The loss of a batch, summed over its trained tokens."""


def check_examples_stay_apart(evaluate: Evaluate, layout: Layout, model_type: str) -> None:
    """Change the first example of a pack and look at the loss of the second; raise `ModelError` where it moves as if
    both were one text.

    Positions that start anew tell `transformers` where an example begins, but not every architecture listens (linear
    attention, convolutions, ALiBi). One that does not would learn from text that it never sees together when it is
    served.
    """
    first, second = _texts()
    apart, together = (
        [evaluate(collate([_pack(text, second, lengths)], layout)) for text in (first, first[::-1])]
        for lengths in ([_EXAMPLE_TOKENS] * 2, [2 * _EXAMPLE_TOKENS])
    )
    if abs(apart[0] - apart[1]) > _ROUNDING * abs(together[0] - together[1]):
        raise ModelError(
            f"packing: {model_type} lets the examples of a pack see each other (the loss of one moves from "
            f"{apart[0]:.6g} to {apart[1]:.6g} with the text of another); set packing: false"
        )


def choose_logits(loss: NextTokenLoss, evaluate: Evaluate, layout: Layout, dtype: torch.dtype) -> None:
    """Leave the logits to the model itself where it does more to them than is known here."""
    batch = collate([_pack(*_texts(), [_EXAMPLE_TOKENS] * 2)], layout)
    loss.uses_own_logits = True
    expected = evaluate(batch)
    loss.uses_own_logits = False
    found = evaluate(batch)
    if abs(expected - found) > _TOLERANCE[dtype] * abs(expected):
        loss.uses_own_logits = True
        _LOG.info(
            "loss: the model does to its logits what is not known here (a loss of %.6g, not %.6g); they are left "
            "to the model, all at once, which takes more memory",
            expected,
            found,
        )


def _texts() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    first, second = np.arange(2 * _EXAMPLE_TOKENS, dtype=np.int32).reshape(2, -1)
    return first, second


def _pack(first: NDArray[np.int32], second: NDArray[np.int32], lengths: list[int]) -> Sample:
    """Two texts, the second one trained, as examples of these lengths."""
    labels = np.concatenate([np.full_like(first, IGNORED_LABEL), second])
    labels[len(first)] = IGNORED_LABEL
    return Sample(np.concatenate([first, second]), labels, np.array(lengths, dtype=np.int32))

"""Mismatched conversations: the prompt of a rated row with the answer of another one, by which KTO tells how far a
model has moved.

In: the collected examples of a split. Out: for each the row whose answer stands behind its prompt, and the parts that
both conversations are put together of. A conversation is cut where its answer begins, where no token lies across and
what follows does not depend on what stands before: both parts together are what the tokenizer would give.
"""

import numpy as np
from numpy.typing import NDArray

from llmforge.dataset.collector import Examples, Pieces

NONE = -1
TRIES = 64
"""Answers that are looked at for a prompt before it is left without one."""


def draw_partners(examples: Examples, rows: NDArray[np.int64], context_length: int, seed: int) -> NDArray[np.int64]:
    """For each of some rows another one of them, which has another prompt and another answer, and whose answer fits
    behind its prompt. Shape (examples,); `NONE` where there is none.

    The rows stand in a circle in random order, and each gets the answer of the next that will do, so that every answer
    is taken about once.
    """
    circle = np.random.default_rng([seed, len(rows)]).permutation(rows)
    partners = np.full(len(examples.lengths), NONE, dtype=np.int64)
    places = np.arange(len(circle))
    for shift in range(1, min(len(circle), TRIES + 1)):
        waiting, candidates = circle[places], circle[(places + shift) % len(circle)]
        does = _do(examples, waiting, candidates, context_length)
        partners[waiting[does]] = candidates[does]
        places = places[~does]
        if len(places) == 0:
            break
    return partners


def mismatched_lengths(examples: Examples, partners: NDArray[np.int64]) -> NDArray[np.int64]:
    """In tokens, shape (examples,). Without a partner a single token without loss stands in."""
    answers = (examples.lengths - examples.prompt_lengths)[partners]
    return np.where(partners == NONE, 1, examples.prompt_lengths + answers)


def rated_conversations(examples: Examples, indexes: NDArray[np.int64], partners: NDArray[np.int64]) -> Pieces:
    """The conversations of rows, the mismatched one of each behind its own."""
    others = partners[indexes]
    is_alone = others == NONE
    nothing = np.zeros_like(indexes)
    prompts, others_prompts = examples.prompt_lengths[indexes], examples.prompt_lengths[others]
    parts = (
        (indexes, nothing, examples.lengths[indexes]),
        (indexes, nothing, np.where(is_alone, 1, prompts)),
        (others, others_prompts, np.where(is_alone, 0, examples.lengths[others] - others_prompts)),
    )
    rows, starts, lengths = (np.stack(column, axis=1).ravel() for column in zip(*parts, strict=True))
    return Pieces(rows, starts, lengths, np.tile([False, False, True], len(indexes)))


def _do(
    examples: Examples, rows: NDArray[np.int64], others: NDArray[np.int64], context_length: int
) -> NDArray[np.bool_]:
    """Whether the answers of the others do behind the prompts of these rows."""
    prompts, answers = examples.prompt_lengths, examples.lengths - examples.prompt_lengths
    same_prompts = examples.are_equal(_parts(rows, prompts * 0, prompts), _parts(others, prompts * 0, prompts))
    same_answers = examples.are_equal(_parts(rows, prompts, answers), _parts(others, prompts, answers))
    fits = prompts[rows] + answers[others] <= context_length
    return np.asarray(fits & ~same_prompts & ~same_answers)


def _parts(rows: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Pieces:
    return Pieces(rows, starts[rows], lengths[rows])

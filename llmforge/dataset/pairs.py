"""Pairs: rows of a chosen and a rejected answer, which stay together from the tokenizer to the model.

In: the encoded conversations of such rows, the chosen one before the rejected one. Out: `EncodedRows` of one row each,
in which the tokens of the two follow each other; what is cut apart again when samples are written.
"""

from dataclasses import replace

import numpy as np

from llmforge.dataset.example import ExampleBatch
from llmforge.dataset.row_encoder import EncodedRows

PAIR = 2
"""Examples of a row."""
WITHOUT_LOSS = "one of the two answers has no token to compare"


def pair_up(encoded: EncodedRows) -> EncodedRows:
    """Every two rows as one."""
    examples = encoded.examples
    lengths = np.diff(examples.offsets).reshape(-1, PAIR)
    num_trained = examples.sums(examples.weights > 0).reshape(-1, PAIR)
    nothing = [None if each.all() else WITHOUT_LOSS for each in num_trained]
    problems = zip(encoded.problems[::PAIR], encoded.problems[1::PAIR], nothing, strict=True)
    return replace(
        encoded,
        examples=ExampleBatch(examples.input_ids, examples.weights, examples.offsets[::PAIR]),
        problems=[next(filter(None, found), None) for found in problems],
        num_prompts=encoded.num_prompts.reshape(-1, PAIR).sum(axis=1),
        straddled=encoded.straddled[::PAIR] | encoded.straddled[1::PAIR],
        ends_with_terminator=encoded.ends_with_terminator[::PAIR] & encoded.ends_with_terminator[1::PAIR],
        is_windowed=encoded.is_windowed[::PAIR],
        first_lengths=lengths[:, 0],
    )

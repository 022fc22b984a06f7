"""Rows of a block as an Arrow table: what the tasks of the data stage hand back, examples and refused rows alike.

In: encoded rows and where they stand. Out: tables of `EXAMPLE_SCHEMA`, made of flat buffers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa

from llmforge.dataset.row_encoder import EncodedRows

EXAMPLE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("line", pa.int64()),
        ("source", pa.int32()),
        ("is_validation", pa.bool_()),
        ("reason", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("num_trained", pa.int64()),
        ("num_prompts", pa.int64()),
        ("straddled", pa.bool_()),
        ("ends_with_terminator", pa.bool_()),
        ("is_windowed", pa.bool_()),
        ("digest", pa.binary()),
        ("first_length", pa.int64()),
        ("is_desirable", pa.bool_()),
    ]
)
"""`source`: its number among those of the job. `reason`: why a row is refused. `weights`: of the loss at every
position, as in `ExampleBatch`; `num_trained`: how many of them are not 0. Then four that are those of `EncodedRows`.
`digest`: of tokens, weights and label, where the job drops duplicates. `first_length`: of a pair or a rated row, as in
`EncodedRows`; `is_desirable`: the label of the latter."""


@dataclass(frozen=True)
class Places:
    """Where the rows of one block stand."""

    uri: str
    source: int
    lines: Sequence[int]


def example_table(
    places: Places, is_validation: Sequence[bool], encoded: EncodedRows, *, with_digests: bool
) -> pa.Table:
    """Rows that are encoded; those with a problem have a reason."""
    examples = encoded.examples
    offsets = pa.array(examples.offsets, pa.int32())
    count = len(places.lines)
    firsts, labels = encoded.first_lengths, encoded.are_desirable
    return pa.table(
        [
            pa.array([places.uri] * count, pa.string()),
            pa.array(places.lines, pa.int64()),
            pa.array(np.full(count, places.source, np.int32)),
            pa.array(is_validation, pa.bool_()),
            pa.array(encoded.problems, pa.string()),
            pa.ListArray.from_arrays(offsets, examples.input_ids),
            pa.ListArray.from_arrays(offsets, examples.weights),
            pa.array(examples.sums(examples.weights > 0), pa.int64()),
            pa.array(encoded.num_prompts, pa.int64()),
            pa.array(encoded.straddled, pa.bool_()),
            pa.array(encoded.ends_with_terminator, pa.bool_()),
            pa.array(encoded.is_windowed, pa.bool_()),
            pa.array(_digests(encoded), pa.binary()) if with_digests else pa.nulls(count, pa.binary()),
            pa.nulls(count, pa.int64()) if firsts is None else pa.array(firsts, pa.int64()),
            pa.nulls(count, pa.bool_()) if labels is None else pa.array(labels, pa.bool_()),
        ],
        schema=EXAMPLE_SCHEMA,
    )


def refused_table(places: Places, reasons: Sequence[str]) -> pa.Table:
    """Rows that have no example."""
    facts = zip(places.lines, reasons, strict=True)
    rows = [{"uri": places.uri, "line": line, "source": places.source, "reason": reason} for line, reason in facts]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def _digests(encoded: EncodedRows) -> list[bytes]:
    """What tells examples apart: the same tokens with the same loss and label are the same example."""
    examples, labels = encoded.examples, encoded.are_desirable
    buffers = [values.view(np.uint8).data for values in (examples.input_ids, examples.weights)]
    keys = [b""] * len(examples) if labels is None else [b"desirable" if label else b"not" for label in labels]
    digests = []
    for key, (begin, end) in zip(keys, pairwise((4 * examples.offsets).tolist()), strict=True):
        digest = blake2b(digest_size=16, key=key)
        for buffer in buffers:  # of four bytes a token each, so both have the same length
            digest.update(buffer[begin:end])
        digests.append(digest.digest())
    return digests

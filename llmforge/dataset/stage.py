"""The part of the data stage that runs on any node: blocks of lines to tables of examples, by Ray Data.

In: blocks of records. Out: one Arrow table per block, in the order of the blocks, with the examples and the refused
rows. It does not know what becomes of them.
"""

import logging
import pickle
from collections.abc import Generator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from llmforge.config.job import JobConfig
from llmforge.dataset.encoders import TextEncoders, open_fast_encoders
from llmforge.dataset.example import ExampleBatch
from llmforge.dataset.row_encoder import EncodedRows, RowEncoder
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import Block, in_validation_fraction, read_lines
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError, LlmforgeError
from llmforge.prompt.render import Task

EXAMPLE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("line", pa.int64()),
        ("is_validation", pa.bool_()),
        ("reason", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("num_prompts", pa.int64()),
        ("straddled", pa.bool_()),
        ("ends_with_terminator", pa.bool_()),
        ("digest", pa.binary()),
    ]
)
"""`reason`: why a row is refused. `weights`: of the loss at every position, as in `ExampleBatch`. Then three that are
those of `EncodedRows`. `digest`: of tokens and weights, where the job drops duplicates."""
_FAILURE = pa.field("failure", pa.binary())
"""A column more on the way from a task: the `LlmforgeError` that ended it, pickled, in a row of its own."""


def job_encoder(job: JobConfig, tokenizer: SegmentTokenizer) -> RowEncoder:
    """What turns the conversations of a resolved job into examples."""
    return RowEncoder(job.prompt_format, tokenizer, cast(Task, job.task), job.dataset.train_on)


class BlockTokenizer:
    """Turns blocks of one job into tables; building it parses the tokenizer, so every process does that once."""

    def __init__(self, job_json: str, tokenizer_json: str, cache_folder: str, fast: bool = False) -> None:
        """`fast`: tokenize by `fastokens`, where it knows this tokenizer."""
        self._job = JobConfig.model_validate_json(job_json)
        encoders = open_fast_encoders(tokenizer_json) if fast else None
        known = encoders if isinstance(encoders, TextEncoders) else None
        self._encoder = job_encoder(self._job, SegmentTokenizer(tokenizer_json, known))
        self._cache_folder = Path(cache_folder)

    def table(self, block: Block) -> pa.Table:
        """All rows of a block: examples, and refused rows with their reason and no tokens."""
        lines, conversations, refused = [], [], []
        for line, text in read_lines(block, self._cache_folder):
            try:
                conversations.append(parse_row(text, self._job.prompt_format, self._job.dataset))
            except DataError as error:
                refused.append((line, str(error)))
                continue
            lines.append(line)
        is_validation = [self._is_validation(block, line) for line in lines]
        encoded = self._encoder.encode(conversations)
        table = _example_table(block.uri, lines, is_validation, encoded)
        if self._job.dataset.deduplicate:
            table = table.set_column(table.num_columns - 1, "digest", pa.array(_digests(encoded.examples)))
        return pa.concat_tables([table, _refused_table(block.uri, refused)])

    def _is_validation(self, block: Block, line: int) -> bool:
        fraction = self._job.dataset.valid_fraction
        if block.is_validation or fraction is None:
            return block.is_validation
        return in_validation_fraction(block.uri, line, fraction, self._job.seed)


def tokenized_tables(
    job: JobConfig, blocks: Sequence[Block], tokenizer_json: str, cache_folder: Path, *, fast: bool
) -> Generator[pa.Table, None, None]:
    """One table per block, in the order of the blocks; `fast` as in `BlockTokenizer`.

    Raises the `LlmforgeError` that a task raised.
    """
    _follow_level_of_ray()
    items = [{"block": pickle.dumps(block)} for block in blocks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    arguments = (job.model_dump_json(), tokenizer_json, str(cache_folder), fast)
    tables = dataset.map_batches(_tokenize_blocks, fn_args=arguments, batch_size=1, num_cpus=1)
    for table in tables.iter_batches(batch_size=None, batch_format="pyarrow"):
        for failure in table[_FAILURE.name].drop_null():
            raise pickle.loads(failure.as_py())
        yield table.drop_columns(_FAILURE.name)


def _follow_level_of_ray() -> None:
    """Keep Ray Data off the terminal where Ray is to be quiet: it prints by a handler of its own, tracebacks too.

    What it raises is raised all the same, and its log file in Ray's session folder holds everything.
    """
    is_quiet = logging.getLogger("ray").getEffectiveLevel() > logging.INFO
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL if is_quiet else logging.INFO)


def _tokenize_blocks(
    batch: dict[str, NDArray[Any]], job_json: str, tokenizer_json: str, cache_folder: str, fast: bool
) -> pa.Table:
    tokenizer = _block_tokenizer(job_json, tokenizer_json, cache_folder, fast)
    try:
        table = pa.concat_tables([tokenizer.table(pickle.loads(block)) for block in batch["block"]])
    except LlmforgeError as error:  # such as a node that cannot read the data
        # Ray Data would wrap an exception in one of its own, and lose it.
        return pa.Table.from_pylist([{_FAILURE.name: pickle.dumps(error)}], schema=EXAMPLE_SCHEMA.append(_FAILURE))
    return table.append_column(_FAILURE, pa.nulls(len(table), _FAILURE.type))


_block_tokenizer = lru_cache(maxsize=1)(BlockTokenizer)


def _example_table(uri: str, lines: Sequence[int], is_validation: Sequence[bool], encoded: EncodedRows) -> pa.Table:
    examples = encoded.examples
    offsets = pa.array(examples.offsets, pa.int32())
    return pa.table(
        [
            pa.array([uri] * len(lines), pa.string()),
            pa.array(lines, pa.int64()),
            pa.array(is_validation, pa.bool_()),
            pa.array(encoded.problems, pa.string()),
            pa.ListArray.from_arrays(offsets, examples.input_ids),
            pa.ListArray.from_arrays(offsets, examples.weights),
            pa.array(encoded.num_prompts, pa.int64()),
            pa.array(encoded.straddled, pa.bool_()),
            pa.array(encoded.ends_with_terminator, pa.bool_()),
            pa.nulls(len(lines), pa.binary()),
        ],
        schema=EXAMPLE_SCHEMA,
    )


def _digests(examples: ExampleBatch) -> list[bytes]:
    """What tells examples apart: the same tokens with the same loss are the same example."""
    buffers = [values.view(np.uint8).data for values in (examples.input_ids, examples.weights)]
    digests = []
    for begin, end in pairwise((4 * examples.offsets).tolist()):
        digest = blake2b(digest_size=16)
        for buffer in buffers:  # of four bytes a token each, so both have the same length
            digest.update(buffer[begin:end])
        digests.append(digest.digest())
    return digests


def _refused_table(uri: str, refused: Sequence[tuple[int, str]]) -> pa.Table:
    rows = [{"uri": uri, "line": line, "reason": reason} for line, reason in refused]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)

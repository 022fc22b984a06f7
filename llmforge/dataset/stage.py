"""The part of the data stage that runs on any node: blocks of lines to tables of examples, by Ray Data.

In: blocks of records. Out: one Arrow table per block, in the order of the blocks, with the examples and the refused
rows. It does not know what becomes of them.
"""

import gc
import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from llmforge.config.data import DatasetConfig
from llmforge.config.job import JobConfig
from llmforge.dataset.encoders import TextEncoders, open_fast_encoders, reference_encoders
from llmforge.dataset.example_table import EXAMPLE_SCHEMA, Places, example_table, refused_table
from llmforge.dataset.first_rows import parsed_rows, read_rows
from llmforge.dataset.held_out import is_held_out
from llmforge.dataset.job_sources import JobSource
from llmforge.dataset.labels import find_label_tokens, labelled, with_labels_checked
from llmforge.dataset.pairs import pair_up
from llmforge.dataset.proof import NUM_PROVEN_ROWS, Proof, prove
from llmforge.dataset.rated import rate
from llmforge.dataset.row_encoder import EncodedRows, job_encoder
from llmforge.dataset.rows import parse_pair, parse_rated, parse_row
from llmforge.dataset.sources import Block, Record, read_lines
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.errors import DataError, LlmforgeError
from llmforge.prompt.document import TrainingRow

_FAILURE = pa.field("failure", pa.binary())
"""A column more on the way from a task: the `LlmforgeError` that ended it, pickled, in a row of its own."""


@dataclass(frozen=True)
class StageSettings:
    """All that a task needs beside its block; it travels with every one."""

    job_json: str
    datasets: tuple[str, ...]
    """How the rows of each source are read, as JSON."""
    tokenizer: TokenizerText
    cache_folder: str
    is_fast: bool
    """Tokenize by `fastokens`, where it knows this tokenizer."""


@dataclass(frozen=True)
class SourceBlock:
    """A block, and the number of the source that its file belongs to."""

    source: int
    block: Block


class _Parsed(NamedTuple):
    """A conversation or document, or the two conversations of a pair."""

    members: tuple[TrainingRow, ...]
    is_desirable: bool = False
    """Of an answer that is rated."""


class BlockTokenizer:
    """Turns blocks of one job into tables."""

    def __init__(self, settings: StageSettings) -> None:
        self._job = JobConfig.model_validate_json(settings.job_json)
        self._datasets = [DatasetConfig.model_validate_json(text) for text in settings.datasets]
        text = settings.tokenizer.json
        fast = open_fast_encoders(text) if settings.is_fast else None
        encoders = fast if isinstance(fast, TextEncoders) else reference_encoders(text)
        tokenizer = SegmentTokenizer(text, encoders)
        self._encoder = job_encoder(self._job, settings.tokenizer.eos_token, tokenizer)
        self._label_ids = find_label_tokens(self._job.labels, self._job.prompt_format, tokenizer)
        self._cache_folder = Path(settings.cache_folder)

    def table(self, part: SourceBlock) -> pa.Table:
        """All rows of a block: examples, and refused rows with their reason and no tokens."""
        block, dataset = part.block, self._datasets[part.source]
        parsed: list[_Parsed] = []
        lines, are_validation, refused, reasons = [], [], [], []
        for line, record in read_lines(block, self._cache_folder):
            try:
                found = self._parsed(record, dataset)
            except DataError as error:
                refused.append(line)
                reasons.append(str(error))
                continue
            parsed += found
            lines += [line] * len(found)
            are_validation += [self._is_validation(block, found)] * len(found)
        table = example_table(
            Places(block.uri, part.source, lines),
            are_validation,
            self._encoded(parsed),
            with_digests=dataset.deduplicate,
        )
        return pa.concat_tables([table, refused_table(Places(block.uri, part.source, refused), reasons)])

    def _parsed(self, record: Record, dataset: DatasetConfig) -> list[_Parsed]:
        """The rows that one record holds: one, or where answers are rated both of a pair."""
        if self._job.is_paired:
            return [_Parsed(parse_pair(record, self._job.prompt_format, dataset))]
        if self._job.is_rated:
            answers = parse_rated(record, self._job.prompt_format, dataset)
            return [_Parsed((answer.conversation,), answer.is_desirable) for answer in answers]
        return [_Parsed((labelled(parse_row(record, self._job.prompt_format, dataset), self._job.labels),))]

    def _encoded(self, parsed: Sequence[_Parsed]) -> EncodedRows:
        encoded = self._encoder.encode([member for row in parsed for member in row.members])
        if self._job.is_rated:
            return rate(encoded, [row.is_desirable for row in parsed])
        return pair_up(encoded) if self._job.is_paired else with_labels_checked(encoded, self._label_ids)

    def _is_validation(self, block: Block, found: Sequence[_Parsed]) -> bool:
        fraction = self._job.dataset.valid_fraction
        if block.is_validation or fraction is None:
            return block.is_validation
        return is_held_out([member for row in found for member in row.members], fraction, self._job.seed)


def tokenized_tables(parts: Sequence[SourceBlock], settings: StageSettings) -> Generator[pa.Table, None, None]:
    """One table per block, in the order of the blocks. Raises the `LlmforgeError` that a task raised."""
    _follow_level_of_ray()
    dataset = ray.data.range(len(parts), override_num_blocks=len(parts))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.memory_usage_poll_interval_s = None  # a thread of each task that would only gather statistics
    tables = dataset.map_batches(_tokenize_blocks, fn_args=(parts, settings), batch_size=1, num_cpus=1)
    for table in tables.iter_batches(batch_size=None, batch_format="pyarrow"):
        for failure in table[_FAILURE.name].drop_null():
            raise pickle.loads(failure.as_py())
        yield table.drop_columns(_FAILURE.name)


def start_proof(sources: Sequence[JobSource], settings: StageSettings) -> Callable[[], Proof]:
    """Begin to prove the tokenizing on the first rows of these sources, on any node; the result waits for it.

    It raises the `LlmforgeError` that the task raised.
    """
    proof = ray.remote(num_cpus=1)(_prove).remote(sources, settings)

    def result() -> Proof:
        try:
            return cast(Proof, ray.get(proof))
        except RayTaskError as error:
            if isinstance(error.cause, LlmforgeError):
                raise error.cause from None  # without the traceback that Ray puts into its text
            raise

    return result


def _prove(sources: Sequence[JobSource], settings: StageSettings) -> Proof:
    job = JobConfig.model_validate_json(settings.job_json)
    read = read_rows(sources, job.prompt_format, Path(settings.cache_folder), labels=job.labels)
    rows = parsed_rows(read, NUM_PROVEN_ROWS)
    return prove(rows, settings.tokenizer.json, partial(job_encoder, job, settings.tokenizer.eos_token))


def _follow_level_of_ray() -> None:
    """Keep Ray Data off the terminal where Ray is to be quiet: it prints by a handler of its own, tracebacks too.

    What it raises is raised all the same, and its log file in Ray's session folder holds everything.
    """
    is_quiet = logging.getLogger("ray").getEffectiveLevel() > logging.INFO
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL if is_quiet else logging.INFO)


def _tokenize_blocks(
    batch: dict[str, NDArray[np.int64]], parts: Sequence[SourceBlock], settings: StageSettings
) -> pa.Table:
    tokenizer = _block_tokenizer(settings)
    try:
        with _garbage_kept():
            table = pa.concat_tables([tokenizer.table(parts[number]) for number in batch["id"]])
    except LlmforgeError as error:  # such as a node that cannot read the data
        # Ray Data would wrap an exception in one of its own, and lose it.
        return pa.Table.from_pylist([{_FAILURE.name: pickle.dumps(error)}], schema=EXAMPLE_SCHEMA.append(_FAILURE))
    return table.append_column(_FAILURE, pa.nulls(len(table), _FAILURE.type))


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Rows hold no cycles, and a collector that walks through all of them again and again takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_block_tokenizer = lru_cache(maxsize=1)(BlockTokenizer)

"""The part of the data stage that runs on any node: blocks of lines to tables of examples, by Ray Data.

In: `LineBlock`s. Out: one Arrow table per block, in the order of the blocks, with the examples and the refused rows. It
does not know what becomes of them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from llmforge.config.job import JobConfig
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import LineBlock, in_validation_fraction, read_lines
from llmforge.dataset.tokenize import Example, SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.render import Task, render

EXAMPLE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("line", pa.int64()),
        ("is_validation", pa.bool_()),
        ("reason", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
    ]
)


class TokenizeBlock:
    """Ray Data stage: one `LineBlock` per call in, one table of examples and refused rows out."""

    def __init__(self, job_json: str, tokenizer_json: str, cache_folder: str) -> None:
        job = JobConfig.model_validate_json(job_json)
        self._job = job
        self._format = job.prompt_format
        self._tokenizer = SegmentTokenizer(tokenizer_json)
        self._cache_folder = Path(cache_folder)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        blocks = [LineBlock(**json.loads(text)) for text in batch["block"]]
        return pa.concat_tables([self.tokenize(block) for block in blocks])

    def tokenize(self, block: LineBlock) -> pa.Table:
        """All rows of a block: examples, and refused rows with their reason and no tokens."""
        lines, segments, refused = [], [], []
        for line, text in read_lines(block, self._cache_folder):
            try:
                conversation = parse_row(text, self._format)
            except DataError as error:
                refused.append((line, str(error)))
                continue
            lines.append(line)
            segments.append(
                render(
                    conversation,
                    self._format,
                    special_tokens=self._tokenizer.special_tokens,
                    task=cast(Task, self._job.task),
                    train_on=self._job.dataset.train_on,
                )
            )
        examples = self._tokenizer.encode(segments)
        return pa.concat_tables(
            [_example_table(block, lines, examples, self._is_validation), _refused_table(block, refused)]
        )

    def _is_validation(self, block: LineBlock, line: int) -> bool:
        fraction = self._job.dataset.valid_fraction
        if block.is_validation or fraction is None:
            return block.is_validation
        return in_validation_fraction(block.uri, line, fraction, self._job.seed)


def tokenized_tables(
    job: JobConfig, blocks: Sequence[LineBlock], tokenizer_json: str, cache_folder: Path
) -> Iterator[pa.Table]:
    """One table per block, in the order of the blocks."""
    items = [{"block": json.dumps(asdict(block))} for block in blocks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    num_actors = max(1, min(len(blocks), int(ray.cluster_resources().get("CPU", 1))))
    tables = dataset.map_batches(
        TokenizeBlock,
        fn_constructor_args=(job.model_dump_json(), tokenizer_json, str(cache_folder)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=1,
    )
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow")


def _example_table(
    block: LineBlock,
    lines: Sequence[int],
    examples: Sequence[Example],
    is_validation: Callable[[LineBlock, int], bool],
) -> pa.Table:
    return pa.table(
        [
            pa.array([block.uri] * len(lines), pa.string()),
            pa.array(lines, pa.int64()),
            pa.array([is_validation(block, line) for line in lines], pa.bool_()),
            pa.nulls(len(lines), pa.string()),
            pa.array([example.input_ids for example in examples], pa.list_(pa.int32())),
            pa.array([example.labels for example in examples], pa.list_(pa.int32())),
        ],
        schema=EXAMPLE_SCHEMA,
    )


def _refused_table(block: LineBlock, refused: Sequence[tuple[int, str]]) -> pa.Table:
    rows = [{"uri": block.uri, "line": line, "reason": reason} for line, reason in refused]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)

"""The data stage as one readable chain: files -> conversations -> segments -> examples -> samples -> committed shards.

In: a resolved job and its tokenizer. Out: a `PreparedDataset` below `output_dir`, in a folder named by the hash
of everything that decides it; if that folder is there already, nothing is done. Rows are parsed and tokenized by Ray
Data wherever it runs (`dataset/stage.py`); packing and writing happen in the driver.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmforge.config.job import JobConfig
from llmforge.config.sizing import measured_context_length
from llmforge.dataset.collector import Collected, ExampleCollector, Examples
from llmforge.dataset.job_sources import NO_ROWS, JobSource, log_formats, with_format
from llmforge.dataset.labels import count_labels, find_label_tokens
from llmforge.dataset.mixture import mix
from llmforge.dataset.prepared import (
    DATA_FOLDER,
    PreparedDataset,
    StageInputs,
    commit_prepared,
    find_prepared,
    read_inputs,
)
from llmforge.dataset.proof import Proof
from llmforge.dataset.selection import select, write_selection
from llmforge.dataset.shards import Split
from llmforge.dataset.sources import plan_blocks
from llmforge.dataset.stage import SourceBlock, StageSettings, start_proof, tokenized_tables
from llmforge.dataset.stats import DatasetStats, SplitStats, length_histogram, summarise_lengths
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.dataset.unused import INVALID, UnusedRow, as_jsonl, list_rows
from llmforge.errors import DataError
from llmforge.storage.base import Storage, join_uri, write_bytes
from llmforge.storage.cache import changed, version_bytes
from llmforge.storage.files import explained

logger = logging.getLogger(__name__)

MAX_BLOCK_BYTES = 12 << 20
MIN_BLOCK_BYTES = 64 << 10
BLOCKS_PER_DEVICE = 4

Progress = Callable[[int, int | None], None]
"""Called with the rows done so far, and how many there are in all where that is known."""


def prepare(
    job: JobConfig,
    tokenizer: TokenizerText,
    storage: Storage,
    cache_folder: Path,
    *,
    model_context_length: int | None,
    progress: Progress = lambda done, total: None,
) -> PreparedDataset:
    """Run the data stage, or find its result. `storage` is rooted at the job's `output_dir`.

    Raises `DataError` with every bad row (file, line, reason) when `dataset.on_invalid` is `error`, and when nothing is
    left to train on.
    """
    inputs = read_inputs(job, tokenizer, model_context_length, cache_folder)
    found = find_prepared(storage, inputs.name)
    return make_prepared(inputs, storage, cache_folder, progress) if found is None else found


def make_prepared(
    inputs: StageInputs, storage: Storage, cache_folder: Path, progress: Progress = lambda done, total: None
) -> PreparedDataset:
    """As `prepare`, where nothing of this name was found."""
    job = inputs.job
    sources = [with_format(source, job.task, cache_folder, rated=job.is_rated) for source in inputs.sources]
    log_formats(sources)
    settings = StageSettings(
        job.model_dump_json(),
        tuple(source.dataset.model_dump_json() for source in sources),
        inputs.tokenizer,
        str(cache_folder),
        is_fast=True,
    )
    place = tempfile.gettempdir()
    with (
        explained("use the folder for temporary files (TMPDIR)", place),
        tempfile.TemporaryDirectory(prefix="llmforge-data-", dir=place) as scratch,
    ):
        collected = _collect(_plan(inputs, cache_folder), sources, settings, Path(scratch), progress)
        _check_rows(job, collected, storage, inputs.name)
        folder = Path(scratch) / "prepared"
        folder.mkdir()
        stats = _assemble(inputs, collected, folder)
        (folder / "stats.json").write_text(stats.model_dump_json(indent=2))
        (folder / "dropped.jsonl").write_bytes(as_jsonl(collected.unused.rows))
        return commit_prepared(storage, inputs.name, folder, stats)


def _collect(
    parts: Sequence[SourceBlock],
    sources: Sequence[JobSource],
    settings: StageSettings,
    scratch: Path,
    progress: Progress,
) -> Collected:
    """Tokenize all rows with Ray Data."""
    folder = scratch / "examples"
    folder.mkdir()
    with ExampleCollector(folder) as collector:
        for table in _tables(parts, sources, settings):
            collector.add(table)
            progress(collector.rows_in, None)
    return collector.result()


def _tables(parts: Sequence[SourceBlock], sources: Sequence[JobSource], settings: StageSettings) -> Iterator[pa.Table]:
    """All tables, by the fast encoder. It is proven while the tasks start; where it fails, they start anew without."""
    proof = start_proof([source for source in sources if not source.is_validation], settings)
    tables = tokenized_tables(parts, settings)
    first = next(tables, None)
    if not _told(proof()):
        tables.close()
        tables = tokenized_tables(parts, replace(settings, is_fast=False))
        first = next(tables, None)
    if first is not None:
        yield first
        yield from tables


def _told(proof: Proof) -> bool:
    """Whether the fast encoder may be used; says what was found."""
    if proof.notice is not None:
        logger.info("%s", proof.notice)
    for warning in proof.warnings:
        logger.warning("%s", warning)
    return proof.is_fast


def _plan(inputs: StageInputs, cache_folder: Path) -> list[SourceBlock]:
    """The blocks of all files. Raises `ChangedError` for a file that is not the version that gave the name."""
    job, versions = inputs.job, inputs.versions
    total_bytes = sum(version_bytes(version) for version in versions.values())
    num_blocks = (job.num_data_blocks_per_device or BLOCKS_PER_DEVICE) * job.max_devices
    block_bytes = min(MAX_BLOCK_BYTES, max(MIN_BLOCK_BYTES, total_bytes // num_blocks))
    parts = [
        SourceBlock(number, block)
        for number, source in enumerate(inputs.sources)
        for block in plan_blocks(
            source.uris, is_validation=source.is_validation, block_bytes=block_bytes, cache_folder=cache_folder
        )
    ]
    for part in parts:
        if part.block.version != versions[part.block.uri]:
            raise changed(part.block.uri)
    return parts


def _check_rows(job: JobConfig, collected: Collected, storage: Storage, name: str) -> None:
    """Refuse the data where the job says so, and where there is nothing to train on."""
    sources = ", ".join(source.path for source in job.train_sources)
    if collected.rows_in == 0:
        raise DataError(f"{sources}: {NO_ROWS}")
    if collected.invalid and job.dataset.on_invalid == "error":
        headline = f"{len(collected.invalid)} of {collected.rows_in} rows are invalid"
        listed = _list_and_store(collected.invalid, storage, name)
        raise DataError(f"{headline}:\n{listed}\nmend them, or leave them out with dataset.on_invalid=drop")
    collected.unused.add(INVALID, collected.invalid)
    if len(collected.unused.rows) == collected.rows_in:
        listed = _list_and_store(collected.unused.rows, storage, name)
        raise DataError(f"{sources}: no row is left to train on:\n{listed}")


def _list_and_store(rows: list[UnusedRow], storage: Storage, name: str) -> str:
    key = f"{DATA_FOLDER}/{name}-unused-rows.jsonl"
    write_bytes(storage, key, as_jsonl(rows))
    return list_rows(rows, join_uri(storage.root_uri, key))


def _assemble(inputs: StageInputs, collected: Collected, folder: Path) -> DatasetStats:
    """Choose the context length, leave out what is longer, pack, and write the shards."""
    job, sources = inputs.job, inputs.sources
    examples = Examples(collected.folder)
    lengths = summarise_lengths(examples.longest_members)
    context_length = job.context_length or measured_context_length(lengths.p95, inputs.model_context_length)[0]
    label_ids: tuple[int, ...] = ()
    if job.labels:
        label_ids = find_label_tokens(job.labels, job.prompt_format, SegmentTokenizer(inputs.tokenizer.json))
    stats: dict[Split, SplitStats] = {}
    num_truncated = 0
    has_validation = bool(job.valid_sources) or job.dataset.valid_fraction is not None
    splits: tuple[Split, ...] = ("train", "valid") if has_validation else ("train",)
    for split in splits:
        is_mixed = split == "train" and any(source.weight is not None for source in sources)
        selection = select(
            split,
            examples,
            context_length,
            job.dataset.over_length,
            collected.unused,
            partial(_mix, job, sources) if is_mixed else None,
            job.seed,
        )
        found = write_selection(selection, bool(job.packing), folder)
        labels = count_labels(examples.last_ids(selection.pieces), job.labels, label_ids)
        stats[split] = found.model_copy(update={"labels": labels})
        num_truncated += selection.num_truncated
    _warn_of_few_trained_tokens(job, stats["train"])
    return DatasetStats(
        rows_in=collected.rows_in,
        rows_used=sum(split_stats.rows for split_stats in stats.values()),
        dropped=dict(collected.unused.counts),
        truncated=num_truncated,
        checks=collected.checks,
        context_length=context_length,
        lengths=lengths,
        length_histogram=length_histogram(examples.longest_members),
        train=stats["train"],
        valid=stats.get("valid"),
        is_paired=job.is_paired,
    )


def _mix(job: JobConfig, sources: Sequence[JobSource], source_of: NDArray[np.int32]) -> NDArray[np.int64]:
    mixed = mix(source_of, [source.weight for source in sources], job.dataset.mixture, job.seed)
    num_rows, num_taken = (np.bincount(found, minlength=len(sources)) for found in (source_of, source_of[mixed]))
    for source, rows, taken in zip(sources, num_rows.tolist(), num_taken.tolist(), strict=True):
        if not source.is_validation:
            share = taken / len(mixed)
            logger.info("data: %s: %d rows, taken %d times in an epoch: %.3g %%", source.path, rows, taken, 100 * share)
    return mixed


def _warn_of_few_trained_tokens(job: JobConfig, train: SplitStats) -> None:
    share = train.trained_tokens / train.tokens
    if share < job.dataset.min_trained_share:
        logger.warning(
            "only %.2g %% of the tokens carry loss (dataset.min_trained_share is %.2g %%): look at the rows with "
            "`llmforge preview`, and at dataset.train_on and the weights of the messages",
            100 * share,
            100 * job.dataset.min_trained_share,
        )

"""The data stage as one readable chain: files -> conversations -> segments -> examples -> samples -> committed shards.

In: a resolved job and the tokenizer's text. Out: a `PreparedDataset` below `output_dir`, in a folder named by the hash
of everything that decides it; if that folder is there already, nothing is done. Rows are parsed and tokenized by Ray
Data wherever it runs (`dataset/stage.py`); packing and writing happen in the driver.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmforge.config.data import DataSource
from llmforge.config.job import JobConfig
from llmforge.config.resolve import DataSizes, size_job
from llmforge.dataset.collector import Collected, ExampleCollector, Examples
from llmforge.dataset.files import expand_uris
from llmforge.dataset.first_rows import first_conversations
from llmforge.dataset.proof import NUM_PROVEN_ROWS, best_encoders, find_joined_difference, find_missing_begin
from llmforge.dataset.selection import select, write_selection
from llmforge.dataset.shards import SampleReader, Split, shard_name
from llmforge.dataset.sources import Block, plan_blocks
from llmforge.dataset.stage import job_encoder, tokenized_tables
from llmforge.dataset.stats import DatasetStats, SplitStats, summarise_lengths
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.dataset.unused import INVALID, UnusedRow, as_jsonl, list_rows
from llmforge.errors import DataError
from llmforge.storage.base import Storage, join_uri, write_bytes
from llmforge.storage.cache import fingerprint
from llmforge.storage.manifest import AlreadyCommittedError, DamagedError, commit_folder, local_folder, read_manifest

logger = logging.getLogger(__name__)

STAGE_VERSION = 3
"""Raised whenever the same inputs would give other samples."""

DATA_FOLDER = "data"
MAX_BLOCK_BYTES = 8 << 20
MIN_BLOCK_BYTES = 64 << 10
BLOCKS_PER_DEVICE = 4

Progress = Callable[[int, int | None], None]
"""Called with the rows done so far, and how many there are in all where that is known."""


@dataclass(frozen=True)
class PreparedDataset:
    """A committed prepared dataset; it travels to workers, which open it by themselves."""

    name: str
    """Hash of everything that decides the content."""
    stats: DatasetStats
    was_cached: bool

    @property
    def prefix(self) -> str:
        """Where it lies below `output_dir`; all runs there share it."""
        return f"{DATA_FOLDER}/{self.name}"

    def open(self, split: Split, storage: Storage, cache_folder: Path) -> SampleReader:
        """Fetch the shard to this node, verified, unless it is there, and map it into memory."""
        manifest = read_manifest(storage, self.prefix)
        if manifest is None:
            uri = join_uri(storage.root_uri, self.prefix)
            raise DataError(f"{uri}: the prepared dataset is gone; start the job again to make it anew")
        target = cache_folder / DATA_FOLDER / self.name
        try:
            folder = local_folder(storage, self.prefix, manifest, target, paths=[shard_name(split)])
        except DamagedError as error:
            uri = join_uri(storage.root_uri, self.prefix)
            raise DataError(
                f"damaged prepared dataset: {error}\nremove {uri} and start the job again to make it anew"
            ) from error
        return SampleReader(folder / shard_name(split))

    def sizes(self, model_context_length: int | None) -> DataSizes:
        """What the rest of the job's numbers follow from."""
        return DataSizes(
            length_p95=self.stats.lengths.p95,
            longest_tokens=self.stats.lengths.longest,
            num_train_samples=self.stats.train.samples,
            model_context_length=model_context_length,
        )


def prepare(
    job: JobConfig,
    tokenizer_json: str,
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
    name = _content_hash(job, tokenizer_json, model_context_length)
    prefix = f"{DATA_FOLDER}/{name}"
    manifest = read_manifest(storage, prefix)
    if manifest is not None:
        logger.info("data: unchanged, using %s", join_uri(storage.root_uri, prefix))
        return PreparedDataset(name, DatasetStats.model_validate(manifest.metadata["stats"]), was_cached=True)
    with tempfile.TemporaryDirectory(prefix="llmforge-data-") as scratch:
        collected = _collect(job, tokenizer_json, cache_folder, Path(scratch), progress)
        _check_rows(job, collected, storage, name)
        folder = Path(scratch) / "prepared"
        folder.mkdir()
        stats = _assemble(job, collected, model_context_length, folder)
        (folder / "stats.json").write_text(stats.model_dump_json(indent=2))
        (folder / "dropped.jsonl").write_bytes(as_jsonl(collected.unused.rows))
        try:
            commit_folder(storage, prefix, folder, metadata={"stats": stats.model_dump(mode="json")})
        except AlreadyCommittedError:  # another job has just prepared the same data
            logger.info("data: another job has prepared %s meanwhile", join_uri(storage.root_uri, prefix))
    return PreparedDataset(name, stats, was_cached=False)


def _content_hash(job: JobConfig, tokenizer_json: str, model_context_length: int | None) -> str:
    decides = {
        "stage": STAGE_VERSION,
        "train": [asdict(fingerprint(uri)) for uri in _files(job.train_sources)],
        "valid": [asdict(fingerprint(uri)) for uri in _files(job.valid_sources)],
        "format": job.prompt_format.model_dump(mode="json"),
        "tokenizer": hashlib.sha256(tokenizer_json.encode()).hexdigest(),
        "task": job.task,
        "packing": job.packing,
        "context_length": job.context_length or f"measured, at most {model_context_length}",
        "dataset": job.dataset.model_dump(mode="json", exclude={"shuffle", "min_trained_share"}),
        "seed": job.seed if job.dataset.valid_fraction is not None else None,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _collect(job: JobConfig, tokenizer_json: str, cache_folder: Path, scratch: Path, progress: Progress) -> Collected:
    """Tokenize all rows with Ray Data."""
    has_validation = bool(job.valid_sources) or job.dataset.valid_fraction is not None
    splits: list[Split] = ["train", "valid"] if has_validation else ["train"]
    blocks = _plan(job, cache_folder)
    with ExampleCollector(scratch, splits) as collector:
        for table in _tables(job, blocks, tokenizer_json, cache_folder):
            collector.add(table)
            progress(collector.rows_in, None)
    return collector.result()


def _tables(job: JobConfig, blocks: Sequence[Block], tokenizer_json: str, cache_folder: Path) -> Iterator[pa.Table]:
    """All tables, by the fast encoder. It is proven while the tasks start; where it fails, they start anew without."""
    with ThreadPoolExecutor(1, "llmforge-prove") as executor:
        proof = executor.submit(_prove, job, tokenizer_json, cache_folder)
        tables = tokenized_tables(job, blocks, tokenizer_json, cache_folder, fast=True)
        first = next(tables, None)
        if not proof.result():
            tables.close()
            tables = tokenized_tables(job, blocks, tokenizer_json, cache_folder, fast=False)
            first = next(tables, None)
    if first is not None:
        yield first
        yield from tables


def _prove(job: JobConfig, tokenizer_json: str, cache_folder: Path) -> bool:
    """Whether the fast encoder may be used; warns of what the first rows show of format and tokenizer."""
    rows = first_conversations(job, job.prompt_format, cache_folder, NUM_PROVEN_ROWS)
    encoders, fast = best_encoders(tokenizer_json, rows)
    tokenizer = SegmentTokenizer(tokenizer_json, encoders)
    encoder = job_encoder(job, tokenizer)
    difference = find_joined_difference(encoders.reference, encoder, rows)
    if difference is not None:
        logger.warning(
            "prompt format: a server that renders the chat template and tokenizes the text will give other ids than "
            "the training, %s; serve with llmforge, or put the format's control tokens as the tokenizer expects them",
            difference,
        )
    begin = find_missing_begin(tokenizer, encoder, rows)
    if begin is not None:
        logger.warning(
            "prompt format: the tokenizer begins every text with %s, no row of this format does; set bos: %r, unless "
            "the model was trained without",
            begin,
            begin,
        )
    return fast


def _plan(job: JobConfig, cache_folder: Path) -> list[Block]:
    groups = ((job.train_sources, False), (job.valid_sources, True))
    total_bytes = sum(fingerprint(uri).size_bytes for sources, _ in groups for uri in _files(sources))
    num_blocks = (job.num_data_blocks_per_device or BLOCKS_PER_DEVICE) * job.num_devices
    block_bytes = min(MAX_BLOCK_BYTES, max(MIN_BLOCK_BYTES, total_bytes // num_blocks))
    return [
        block
        for sources, is_validation in groups
        for block in plan_blocks(
            _files(sources),
            is_validation=is_validation,
            block_bytes=block_bytes,
            cache_folder=cache_folder,
        )
    ]


def _files(sources: Sequence[DataSource]) -> list[str]:
    """The single files of sources."""
    return expand_uris(source.path for source in sources)


def _check_rows(job: JobConfig, collected: Collected, storage: Storage, name: str) -> None:
    """Refuse the data where the job says so, and where there is nothing to train on."""
    sources = ", ".join(source.path for source in job.train_sources)
    if collected.rows_in == 0:
        raise DataError(f"{sources}: no rows; expected one JSON object per line")
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


def _assemble(job: JobConfig, collected: Collected, model_context_length: int | None, folder: Path) -> DatasetStats:
    """Choose the context length, leave out what is longer, pack, and write the shards."""
    splits = {split: Examples(folder) for split, folder in collected.folders.items()}
    lengths = summarise_lengths(np.concatenate([examples.lengths for examples in splits.values()]))
    sizes = DataSizes(lengths.p95, lengths.longest, model_context_length=model_context_length)
    context_length = size_job(job, sizes).context_length
    assert context_length is not None
    stats: dict[Split, SplitStats] = {}
    num_truncated = 0
    for split, examples in splits.items():
        selection = select(split, examples, context_length, job.dataset.over_length, collected.unused)
        stats[split] = write_selection(selection, bool(job.packing), folder / shard_name(split))
        num_truncated += selection.num_truncated
    _warn_of_few_trained_tokens(job, stats["train"])
    return DatasetStats(
        rows_in=collected.rows_in,
        rows_used=sum(split_stats.examples for split_stats in stats.values()),
        dropped=dict(collected.unused.counts),
        truncated=num_truncated,
        checks=collected.checks,
        context_length=context_length,
        lengths=lengths,
        train=stats["train"],
        valid=stats.get("valid"),
    )


def _warn_of_few_trained_tokens(job: JobConfig, train: SplitStats) -> None:
    share = train.trained_tokens / train.tokens
    if share < job.dataset.min_trained_share:
        logger.warning(
            "only %.2g %% of the tokens carry loss (dataset.min_trained_share is %.2g %%): look at the rows with "
            "`llmforge preview`, and at dataset.train_on and the weights of the messages",
            100 * share,
            100 * job.dataset.min_trained_share,
        )

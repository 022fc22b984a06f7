"""`llmforge validate --data`: a job file and overrides in, what its data, its memory and its time come to out.

The data stage runs as it would for training and leaves the prepared dataset where training finds it. Of the model it
needs the tokenizer and `config.json`. What is not known, such as the speed of the devices, is said to be unknown unless
`Assumptions` give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmforge.cli.data_stage import PreparedJob, prepare_data
from llmforge.cli.html_file import check_html_file, write_html_file
from llmforge.cli.memory import plan_memory
from llmforge.cli.validate import describe_job, format_origin, format_warnings, load_checked_job
from llmforge.config.job import JobConfig
from llmforge.config.resolve import global_batch_size, steps_per_epoch
from llmforge.dataset.stats import DatasetStats
from llmforge.metrics.charts import LengthBin
from llmforge.metrics.data_page import DataPage, Lengths, RowCount, SplitLine, data_lines, write_data_page
from llmforge.metrics.meters import duration_text
from llmforge.metrics.summary import Tile, count_text


@dataclass(frozen=True)
class Assumptions:
    """What a person knows of the devices; None where they do not."""

    device_memory_gib: float | None = None
    tokens_per_second: float | None = None
    """Trained or not, of all devices together."""
    price_per_device_hour: float | None = None
    """In any currency."""


def run_check_data(
    job_file: Path, overrides: Sequence[str], assumptions: Assumptions, *, html_file: Path | None
) -> str:
    """A summary of the job, of its data, and of what training takes; also as a page where `html_file` is given.

    Raises `LlmforgeError` for whatever is wrong.
    """
    if html_file is not None:
        check_html_file(html_file)
    submitted = load_checked_job(str(job_file), overrides)
    done = prepare_data(submitted)
    page = _page(submitted, job_file, done, assumptions)
    summary = describe_job(submitted, str(job_file), done.local.job.prompt_format, done.local.special_tokens)
    lines = [summary, done.prepared.stats.describe(), *data_lines(page)]
    if html_file is not None:
        write_html_file(html_file, partial(write_data_page, page=page))
        lines.append(f"page: {html_file}")
    return "\n".join(lines)


def _page(submitted: JobConfig, job_file: Path, done: PreparedJob, assumptions: Assumptions) -> DataPage:
    job, stats = done.job, done.prepared.stats
    method = "all weights" if job.lora_config is None else f"LoRA, r = {job.lora_config.r}"
    memory = plan_memory(done.local.model, job, stats, assumptions.device_memory_gib)
    expected = _expected(job, stats, assumptions)
    return DataPage(
        title=f"{job_file}: its data before training",
        facts={
            "model": submitted.model_id,
            "prompt format": format_origin(submitted, is_known=True),
            "method": f"{method}, {job.precision}, {job.num_devices} x {job.accelerator}",
            "train data": ", ".join(source.path for source in job.train_sources),
            "valid data": ", ".join(source.path for source in job.valid_sources) or "none of its own",
            "prepared in": done.uri,
        },
        warnings=format_warnings(submitted, done.local.job.prompt_format, done.local.special_tokens),
        tiles=[
            *_tiles(job, stats),
            *([Tile("Memory", f"{memory.plan.total_bytes / 2**30:.1f} GiB", "of each device")] if memory.plan else []),
        ],
        rows=_rows(stats),
        num_dropped=stats.rows_dropped,
        dropped_file=f"{done.uri}/dropped.jsonl",
        splits=[
            SplitLine(name, split.examples, split.samples, split.tokens, split.trained_tokens, split.packing_efficiency)
            for name, split in (("training", stats.train), ("validation", stats.valid))
            if split is not None
        ],
        lengths=_lengths(stats),
        memory=memory,
        expected=expected,
    )


def _tiles(job: JobConfig, stats: DatasetStats) -> list[Tile]:
    train = stats.train
    return [
        Tile("Rows used", f"{stats.rows_used:,}", f"of {stats.rows_in:,}; {stats.rows_dropped:,} dropped"),
        Tile("Tokens an epoch", count_text(train.tokens), f"{train.trained_tokens / train.tokens:.0%} trained"),
        Tile("Sequences", f"{train.samples:,}", f"{train.packing_efficiency:.1%} of the positions filled"),
        Tile("Steps", f"{job.max_steps:,}", f"{steps_per_epoch(job, train.samples):,} an epoch"),
    ]


def _rows(stats: DatasetStats) -> list[RowCount]:
    counts = {"in": stats.rows_in, "used": stats.rows_used}
    counts |= {f"dropped: {reason}": count for reason, count in stats.dropped.items()}
    rows = [RowCount(what, count, count / stats.rows_in) for what, count in counts.items()]
    if stats.truncated:
        cut = RowCount("used, but cut to the context length", stats.truncated, stats.truncated / stats.rows_in)
        rows.insert(2, cut)
    return rows


def _lengths(stats: DatasetStats) -> Lengths:
    lengths = stats.lengths
    return Lengths(
        f"Median {lengths.median:,}, 95 % up to {lengths.p95:,}, longest {lengths.longest:,}; "
        f"context_length is {stats.context_length:,}.",
        [LengthBin(found.shortest, found.longest, found.count) for found in stats.length_histogram],
        stats.context_length,
    )


def _expected(job: JobConfig, stats: DatasetStats, assumptions: Assumptions) -> dict[str, str]:
    an_epoch = steps_per_epoch(job, stats.train.samples)
    max_steps = job.max_steps or 0
    num_tokens = round(stats.train.tokens * max_steps / an_epoch)
    expected = {
        "steps": f"{max_steps}, {an_epoch} an epoch, up to {global_batch_size(job)} sequences each",
        "tokens": f"{stats.train.tokens:,} an epoch, {num_tokens:,} in all steps",
    }
    if assumptions.tokens_per_second is None:
        unknown = "not known; give --tokens-per-second, which is train/tokens_per_second in the metrics of a run"
        return expected | {"time": unknown}
    seconds = num_tokens / assumptions.tokens_per_second
    expected["time"] = (
        f"about {duration_text(seconds)}: {num_tokens:,} tokens at {assumptions.tokens_per_second:,g} a second of all "
        "devices, as given; without start, evaluation and checkpoints"
    )
    if assumptions.price_per_device_hour is not None:
        hours = seconds / 3600 * job.num_devices
        price = assumptions.price_per_device_hour
        expected["cost"] = (
            f"about {hours * price:,.2f}: {hours:,.2f} device hours ({job.num_devices} devices) at {price:g} each"
        )
    return expected

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
from llmforge.cli.memory import or_name_it, plan_memory
from llmforge.cli.validate import (
    describe_job,
    format_origin,
    format_warnings,
    load_checked_job,
    validation_origin,
)
from llmforge.config.accelerators import find_accelerator, named_accelerator
from llmforge.config.compute_plan import Speed, estimate_speed
from llmforge.config.job import JobConfig
from llmforge.config.sizing import global_batch_size, steps_per_epoch
from llmforge.dataset.facts import data_facts
from llmforge.dataset.stats import DatasetStats, SplitStats
from llmforge.metrics.data_page import DataPage, data_lines
from llmforge.metrics.meters import duration_text
from llmforge.metrics.summary import Tile, bytes_text, count_text
from llmforge.models.folder import ModelFacts


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
    summary = describe_job(submitted, str(job_file), done.local.job.prompt_format, done.local.special_tokens, done.job)
    lines = [summary, done.prepared.stats.describe(), *data_lines(page)]
    if html_file is not None:
        from llmforge.metrics.data_html import write_data_page

        write_html_file(html_file, partial(write_data_page, page=page))
        lines.append(f"page: {html_file}")
    return "\n".join(lines)


def _page(submitted: JobConfig, job_file: Path, done: PreparedJob, assumptions: Assumptions) -> DataPage:
    job, stats = done.job, done.prepared.stats
    method = "all weights" if job.lora_config is None else f"LoRA, r = {job.lora_config.r}"
    model = done.local.model.facts
    memory = plan_memory(model, job, stats.train, assumptions.device_memory_gib)
    return DataPage(
        title=f"{job_file}: its data before training",
        facts={
            "model": submitted.model_id,
            "prompt format": format_origin(submitted, is_known=True),
            "method": f"{method}, {job.precision}, {job.devices_text} x {job.accelerator}",
            "train data": ", ".join(source.path for source in job.train_sources),
            "valid data": validation_origin(job),
            "prepared in": done.uri,
        },
        warnings=format_warnings(submitted, done.local.job.prompt_format, done.local.special_tokens),
        tiles=[
            *_tiles(job, stats),
            *([Tile("Memory", bytes_text(memory.plan.total_bytes), "of each device")] if memory.plan else []),
        ],
        data=data_facts(stats, done.uri),
        memory=memory,
        expected=_expected(job, model, stats, assumptions),
    )


def _tiles(job: JobConfig, stats: DatasetStats) -> list[Tile]:
    train = stats.train
    return [
        Tile("Rows used", f"{stats.rows_used:,}", f"of {stats.rows_in:,}; {stats.rows_dropped:,} dropped"),
        Tile("Tokens an epoch", count_text(train.tokens), f"{train.trained_tokens / train.tokens:.0%} trained"),
        Tile("Sequences", f"{train.samples:,}", f"{train.packing_efficiency:.1%} of the positions filled"),
        Tile("Steps", f"{job.max_steps:,}", f"{steps_per_epoch(job, train.samples):,} an epoch"),
    ]


def _expected(job: JobConfig, model: ModelFacts, stats: DatasetStats, assumptions: Assumptions) -> dict[str, str]:
    """Steps, tokens, time and cost in words."""
    an_epoch = steps_per_epoch(job, stats.train.samples)
    assert job.max_steps is not None
    num_tokens = round(stats.train.tokens * job.max_steps / an_epoch)
    expected = {
        "steps": f"{job.max_steps:,}, {an_epoch:,} an epoch, up to {global_batch_size(job):,} sequences each",
        "tokens": f"{stats.train.tokens:,} an epoch, {num_tokens:,} in all steps",
    }
    speed = _speed(job, model, stats.train, assumptions)
    price = assumptions.price_per_device_hour
    if isinstance(speed, str):
        return expected | {"time": speed} | ({} if price is None else {"cost": "not known, as the time is not"})
    seconds = num_tokens / speed.tokens_per_second
    expected["time"] = (
        f"about {duration_text(seconds)} of steps, without start, evaluation and checkpoints: {num_tokens:,} tokens at "
        f"{speed.tokens_per_second:,.0f} a second, {speed.formula}"
    )
    if price is not None:
        hours = seconds / 3600 * job.max_devices
        devices = f"{job.max_devices} device{'s' if job.max_devices > 1 else ''}"
        expected["cost"] = f"about {hours * price:,.2f}: {hours:,.2f} device hours of {devices} at {price:g} each"
    return expected


def _speed(job: JobConfig, model: ModelFacts, train: SplitStats, assumptions: Assumptions) -> Speed | str:
    """As given, else by the accelerator that the job names; or why nobody can say."""
    if assumptions.tokens_per_second is not None:
        return Speed(assumptions.tokens_per_second, "of all devices, as given")
    measure = "give --tokens-per-second, which is train/tokens_per_second in the metrics of a run"
    name = named_accelerator(job.worker_resources, job.trainer_resources)
    accelerator = find_accelerator(job.worker_resources, job.trainer_resources)
    if name is None:
        return f"not known; {measure}{or_name_it(job)}"
    if accelerator is None or accelerator.peak_tflops is None:
        return f"not known: the peak of {name} is not known here; {measure}"
    speed = estimate_speed(
        job,
        model.sizes,
        accelerator,
        tokens_per_example=train.tokens / train.examples,
        trained_share=train.trained_tokens / train.tokens,
    )
    if speed is None:
        return f"not known: an estimate needs the sizes of the model, and 16 bits; {measure}"
    return Speed(speed.tokens_per_second, f"an estimate: {speed.formula}")

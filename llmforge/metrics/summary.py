"""A run in words and numbers: what the report says besides its charts.

In: metric records (see `meters.py`). Out: tiles and warnings as plain texts, not escaped for any format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmforge.metrics.meters import CHOOSING_METRICS, PARTS, RANK_MEMORY_PREFIX, Record, duration_text, loss_meaning
from llmforge.metrics.stretches import Stretch, mean, padding_share, part_share, read_stretches

_UNSEEN_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What steers a terminal or the direction of a text, or shows nothing at all; joiners, which scripts and emojis need,
are none of these."""
_CONTROL_PICTURES = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}
MOST_DATA_WAIT_SHARE = 0.01
"""Of the time of the steps; more is a warning."""
LEAST_DATA_WAIT_SECONDS = 1.0
"""In all steps; less is nobody's loss, whatever its share."""
MOST_PADDING_SHARE = 0.1
"""Of the positions computed; more is a warning."""
_MOST_RANKS_LISTED = 4


@dataclass(frozen=True)
class Tile:
    """One number of the summary."""

    label: str
    value: str
    detail: str = ""


def merge_records(records: Iterable[Record]) -> list[Record]:
    """One record per step, in order of step; of two values for the same key the later one counts."""
    merged: dict[float, dict[str, float]] = {}
    for record in records:
        merged.setdefault(record["step"], {}).update(record)
    return [merged[step] for step in sorted(merged)]


def best_evaluation(records: Sequence[Record], step: int | None = None) -> Record | None:
    """The evaluation of the best checkpoint, which is of this step.

    Without one that with the lowest finite loss, the first of equals; None without any.
    """
    chosen = next((record for record in records if record["step"] == step and "eval/loss" in record), None)
    if chosen is not None:
        return chosen
    finite = [record for record in records if math.isfinite(record.get("eval/loss", math.nan))]
    return min(finite, key=lambda record: record["eval/loss"], default=None)


def summarise(records: Sequence[Record], best: Record | None = None, chosen_by: str | None = None) -> list[Tile]:
    """The summary of merged records; what was not measured has no tile.

    `best` is the best evaluation, by one of `CHOOSING_METRICS` or, with None, by the loss.
    """
    tiles = []
    if best is not None:
        tiles.append(_best_evaluation_tile(records, best, chosen_by))
    training = [record for record in records if "train/loss" in record]
    if training:
        tiles.append(_loss_tile(training))
        epochs = f"{training[-1]['epoch']:.2f} epochs" if "epoch" in training[-1] else ""
        tiles.append(Tile("Steps", number_text(training[-1]["step"]), epochs))
    stretches = read_stretches(records)
    if stretches:
        tiles.extend(_speed_tiles(stretches))
        tiles.extend(_step_time_tiles(stretches))
    tiles.extend(_save_tiles(records, stretches))
    tiles.extend(_work_tiles(stretches))
    tiles.extend(_memory_tiles(records))
    return tiles


def find_warnings(records: Sequence[Record]) -> list[str]:
    """What a person should know before believing the curves."""
    warnings = []
    for key, name in (("train/loss", "training loss"), ("eval/loss", "evaluation loss")):
        bad = [record["step"] for record in records if not math.isfinite(record.get(key, 0.0))]
        if bad:
            where = f"step {bad[0]}" if len(bad) == 1 else f"{len(bad)} logged steps, the first of them step {bad[0]}"
            warnings.append(
                f"The {name} is not a finite number at {where}. Checkpoints from there on are probably of no use: "
                "lower the learning rate, add warm-up steps, or use bf16 or fp32 instead of fp16, and train again."
            )
    return [*warnings, *_waste_warnings(read_stretches(records))]


def number_text(value: object) -> str:
    """A value for people: thousands separated, four digits of a fraction, items of a list separated by commas."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float() if math.isfinite(value):
            return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
        case float():
            return "NaN" if math.isnan(value) else "infinite"
        case list() | tuple():
            return ", ".join(map(number_text, value))
        case None:
            return "none"
    return str(value)


def decimal_text(value: float, num_digits: int) -> str:
    """A loss or a perplexity with a fixed number of digits after the point, so that a column lines up."""
    return f"{value:,.{num_digits}f}" if abs(value) < 1e6 else number_text(value)


def count_text(count: float) -> str:
    """A count in short: `950,000`, `3.22 M`, `1.04 B`."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:,.0f}"


def bytes_text(num_bytes: float) -> str:
    """An amount of memory: `3.25 MiB`, `41.20 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes / 2**10:.2f} KiB"


def visible_text(text: str) -> str:
    """As `printable_text`, with a mark at each line end."""
    return printable_text(text).replace("\n", "↵\n")


def printable_text(text: str) -> str:
    """The text with pictures or numbers of what cannot be seen, so that it does nothing to a terminal or a page."""
    return _UNSEEN_CHARACTERS.sub(lambda found: _CONTROL_PICTURES.get(found[0], f"<U+{ord(found[0]):04X}>"), text)


def _best_evaluation_tile(records: Sequence[Record], best: Record, chosen_by: str | None) -> Tile:
    loss = decimal_text(best["eval/loss"], 4)
    if chosen_by is None:
        name, value, meaning = "evaluation loss", loss, loss_meaning(best)
    else:
        name, value, meaning = CHOOSING_METRICS[chosen_by], f"{100 * best[chosen_by]:.1f} %", f"evaluation loss {loss}"
    details = [f"{meaning} at step {best['step']:,}"]
    base = next((record["eval/loss"] for record in records if record["step"] == 0 and "eval/loss" in record), None)
    if base is not None:
        details.append(f"loss {decimal_text(base, 4)} before training")
    return Tile(f"Best {name}", value, "; ".join(details))


def _loss_tile(training: Sequence[Record]) -> Tile:
    first, last = training[0], training[-1]
    detail = f"{decimal_text(first['train/loss'], 4)} at step {first['step']:,}" if len(training) > 1 else ""
    return Tile("Final training loss", decimal_text(last["train/loss"], 4), detail)


def _waste_warnings(stretches: Sequence[Stretch]) -> list[str]:
    warnings = []
    later = stretches[1:] or stretches  # the first step waits for the first batch, which nothing could fetch ahead
    wait_share = part_share(later, "data") or 0.0
    wait_seconds = wait_share * sum(stretch.seconds for stretch in later)
    if wait_share > MOST_DATA_WAIT_SHARE and wait_seconds >= LEAST_DATA_WAIT_SECONDS:
        warnings.append(
            f"The steps waited for their batches for {duration_text(wait_seconds)}, {wait_share:.1%} of their time; up "
            f"to {MOST_DATA_WAIT_SHARE:.0%} is usual. Batches are read while the step before is computed: either the "
            "disk with the prepared dataset is slow (LLMFORGE_CACHE names a folder on another one), or the workers "
            "have too few CPU cores (worker_resources asks for more)."
        )
    padding = padding_share(stretches)
    if padding is not None and padding > MOST_PADDING_SHARE:
        warnings.append(
            f"{padding:.1%} of the positions that the model computed were padding; up to {MOST_PADDING_SHARE:.0%} is "
            "usual. Set packing: true, which fills sequences with several examples; for a model that refuses it, "
            "padding: longest and a smaller train_batch_size_per_device with more gradient_accumulation_steps pad less."
        )
    return warnings


def _speed_tiles(stretches: Sequence[Stretch]) -> list[Tile]:
    """Time, tokens and speed over all steps."""
    seconds = sum(stretch.seconds for stretch in stretches)
    rate = mean(stretches, "train/trained_tokens_per_second") or 0.0
    details = [f"{count_text(rate * seconds)} trained tokens"]
    per_device = mean(stretches, "train/trained_tokens_per_second_per_device")
    if per_device is not None and per_device < 0.99 * rate:
        details.append(f"{count_text(per_device)}/s per device")
    return [
        Tile("Trained tokens/s", count_text(rate), "; ".join(details)),
        Tile("Time in steps", duration_text(seconds), "without start-up, evaluations and saves"),
    ]


def _step_time_tiles(stretches: Sequence[Stretch]) -> list[Tile]:
    """Where the time of a step goes."""
    shares = [(part, part_share(stretches, part)) for part in PARTS]
    details = [f"{'data wait' if part == 'data' else part} {share:.1%}" for part, share in shares if share is not None]
    if not details:
        return []
    step_seconds = sum(stretch.seconds for stretch in stretches) / sum(stretch.num_steps for stretch in stretches)
    return [Tile("Time of a step", f"{number_text(step_seconds)} s", ", ".join(details))]


def _save_tiles(records: Sequence[Record], stretches: Sequence[Stretch]) -> list[Tile]:
    saves = [record["save/seconds"] for record in records if "save/seconds" in record]
    if not saves:
        return []
    detail = f"{len(saves)} {'save' if len(saves) == 1 else 'saves'}"
    seconds = sum(stretch.seconds for stretch in stretches)
    if seconds:
        detail += f", {sum(saves) / seconds:.1%} on top of the time in steps"
    return [Tile("Training held back by saves", duration_text(sum(saves)), detail)]


def _work_tiles(stretches: Sequence[Stretch]) -> list[Tile]:
    """How much of the devices' work was of use."""
    tiles = []
    padding = padding_share(stretches)
    if padding is not None:
        tiles.append(Tile("Padding", f"{padding:.1%}", "of the positions computed"))
    tflops, mfu = mean(stretches, "train/tflops_per_device"), mean(stretches, "train/mfu")
    if mfu is not None:
        by_6n = mean(stretches, "train/mfu_6n")
        also = "" if by_6n is None else f"{by_6n:.1%} by 6 x parameters x tokens"
        per_device = "" if tflops is None else f"{number_text(tflops)} TFLOP/s per device"
        tiles.append(Tile("MFU", f"{mfu:.1%}", "; ".join(filter(None, [per_device, also]))))
    elif tflops is not None:
        speed, unit = (tflops, "TFLOP/s") if tflops >= 1 else (1000 * tflops, "GFLOP/s")
        tiles.append(Tile(f"{unit} of a device", number_text(speed), "operations that the model needs"))
    return tiles


def _memory_tiles(records: Sequence[Record]) -> list[Tile]:
    peaks = [record["train/peak_memory_bytes"] for record in records if "train/peak_memory_bytes" in record]
    if not peaks:
        return []
    return [Tile("Peak memory", f"{max(peaks) / 2**30:.2f} GiB", _ranks_text(records) or "largest of the devices")]


def _ranks_text(records: Sequence[Record]) -> str:
    """The most of each rank, or of the smallest where there are many; empty where ranks were not told apart."""
    by_rank: dict[int, float] = {}
    for record in records:
        for key in record:
            if key.startswith(RANK_MEMORY_PREFIX):
                rank = int(key.removeprefix(RANK_MEMORY_PREFIX))
                by_rank[rank] = max(record[key], by_rank.get(rank, 0.0))
    if len(by_rank) > _MOST_RANKS_LISTED:
        smallest = min(by_rank, key=lambda rank: by_rank[rank])
        return f"largest of {len(by_rank)} ranks; the smallest {bytes_text(by_rank[smallest])} on rank {smallest}"
    return ", ".join(f"rank {rank} {bytes_text(peak)}" for rank, peak in sorted(by_rank.items()))

"""A run in words and numbers: what the report says besides its charts.

In: metric records (see `meters.py`). Out: tiles and warnings as plain texts, not escaped for any format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmforge.metrics.meters import Record, duration_text, perplexity

_UNSEEN_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What steers a terminal or the direction of a text, or shows nothing at all; joiners, which scripts and emojis need,
are none of these."""
_CONTROL_PICTURES = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}


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


def best_evaluation(records: Sequence[Record]) -> Record | None:
    """The record with the lowest finite evaluation loss, the first of equals; None without one."""
    finite = [record for record in records if math.isfinite(record.get("eval/loss", math.nan))]
    return min(finite, key=lambda record: record["eval/loss"], default=None)


def summarise(records: Sequence[Record]) -> list[Tile]:
    """The summary of merged records; what was not measured has no tile."""
    tiles = []
    best = best_evaluation(records)
    if best is not None:
        tiles.append(_best_evaluation_tile(records, best))
    training = [record for record in records if "train/loss" in record]
    if training:
        tiles.append(_loss_tile(training))
        epochs = f"{training[-1]['epoch']:.2f} epochs" if "epoch" in training[-1] else ""
        tiles.append(Tile("Steps", number_text(training[-1]["step"]), epochs))
    tiles.extend(_speed_tiles(records))
    peaks = [record["train/peak_memory_bytes"] for record in records if "train/peak_memory_bytes" in record]
    if peaks:
        tiles.append(Tile("Peak memory", f"{max(peaks) / 2**30:.2f} GiB", "largest of the devices"))
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
    return warnings


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


def _best_evaluation_tile(records: Sequence[Record], best: Record) -> Tile:
    details = [f"perplexity {decimal_text(perplexity(best['eval/loss']), 2)} at step {best['step']:,}"]
    base = next((record["eval/loss"] for record in records if record["step"] == 0 and "eval/loss" in record), None)
    if base is not None:
        details.append(f"loss {decimal_text(base, 4)} before training")
    return Tile("Best evaluation loss", decimal_text(best["eval/loss"], 4), "; ".join(details))


def _loss_tile(training: Sequence[Record]) -> Tile:
    first, last = training[0], training[-1]
    detail = f"{decimal_text(first['train/loss'], 4)} at step {first['step']:,}" if len(training) > 1 else ""
    return Tile("Final training loss", decimal_text(last["train/loss"], 4), detail)


def _speed_tiles(records: Sequence[Record]) -> list[Tile]:
    """Time, tokens and speed over all steps; a record speaks for the steps since the one before it."""
    seconds, trained_tokens, previous_step = 0.0, 0.0, 0.0
    for record in records:
        if "train/step_seconds" not in record:
            continue
        stretch_seconds = record["train/step_seconds"] * (record["step"] - previous_step)
        rate = record.get("train/trained_tokens_per_second", math.nan)
        previous_step = record["step"]
        if math.isfinite(stretch_seconds) and math.isfinite(rate):
            seconds += stretch_seconds
            trained_tokens += stretch_seconds * rate
    if seconds == 0:
        return []
    return [
        Tile("Trained tokens/s", count_text(trained_tokens / seconds), f"{count_text(trained_tokens)} trained tokens"),
        Tile("Time in steps", duration_text(seconds), "without start-up, evaluations and saves"),
    ]

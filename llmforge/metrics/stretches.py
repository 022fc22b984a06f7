"""Numbers of a whole run out of its records, each of which speaks for the steps since the one before.

In: merged metric records (see `meters.py`) in order of step. Out: means over time, and shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.metrics.meters import Record


@dataclass(frozen=True)
class Stretch:
    """The steps since the record before, of which this record tells."""

    record: Record
    num_steps: float

    @property
    def seconds(self) -> float:
        return self.num_steps * self.record["train/step_seconds"]


def read_stretches(records: Sequence[Record]) -> list[Stretch]:
    """Those of known duration and speed."""
    stretches, previous_step = [], 0.0
    for record in records:
        if "train/step_seconds" not in record:
            continue
        stretch = Stretch(record, record["step"] - previous_step)
        previous_step = record["step"]
        rate = record.get("train/trained_tokens_per_second", math.nan)
        if stretch.seconds > 0 and math.isfinite(stretch.seconds) and math.isfinite(rate):
            stretches.append(stretch)
    return stretches


def mean(stretches: Sequence[Stretch], key: str) -> float | None:
    """Of a rate over the time in which it is known; None where it never is."""
    known = [stretch for stretch in stretches if math.isfinite(stretch.record.get(key, math.nan))]
    if not known:
        return None
    return sum(stretch.seconds * stretch.record[key] for stretch in known) / sum(stretch.seconds for stretch in known)


def part_share(stretches: Sequence[Stretch], part: str) -> float | None:
    """Of the time of the steps that measured this part; None where none did."""
    key = f"train/{part}_seconds"
    known = [stretch for stretch in stretches if math.isfinite(stretch.record.get(key, math.nan))]
    if not known:
        return None
    return sum(stretch.num_steps * stretch.record[key] for stretch in known) / sum(stretch.seconds for stretch in known)


def padding_share(stretches: Sequence[Stretch]) -> float | None:
    """Of all positions; None where it was not measured."""
    num_tokens, num_positions = 0.0, 0.0
    for stretch in stretches:
        share = stretch.record.get("train/padding_share", math.nan)
        stretch_tokens = stretch.seconds * stretch.record.get("train/tokens_per_second", math.nan)
        if math.isfinite(stretch_tokens) and share < 1:
            num_tokens += stretch_tokens
            num_positions += stretch_tokens / (1 - share)
    return 1 - num_tokens / num_positions if num_positions else None

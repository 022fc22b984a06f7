"""The statistics of a prepared dataset as the values that pages show: in `DatasetStats`, out `DataFacts`."""

from __future__ import annotations

from llmforge.dataset.stats import DatasetStats
from llmforge.metrics.data_facts import DataFacts, LengthBin, Lengths, RowCount, SplitLine
from llmforge.storage.base import join_uri

PAIRS = "a row is a pair: two examples, the chosen and the rejected conversation, in the same sequence"
RATED = "a row is an answer: two examples, its conversation and a mismatched one, whose tokens are not trained; "


def data_facts(stats: DatasetStats, uri: str) -> DataFacts:
    """`uri` is where the prepared dataset lies."""
    lengths = stats.lengths
    return DataFacts(
        rows=_rows(stats),
        num_dropped=stats.rows_dropped,
        dropped_file=join_uri(uri, "dropped.jsonl"),
        splits=[
            SplitLine(name, split.examples, split.samples, split.tokens, split.trained_tokens, split.packing_efficiency)
            for name, split in (("training", stats.train), ("validation", stats.valid))
            if split is not None
        ],
        lengths=Lengths(
            f"Median {lengths.median:,}, 95 % up to {lengths.p95:,}, longest {lengths.longest:,}; "
            f"context_length is {stats.context_length:,}.",
            [LengthBin(found.shortest, found.longest, found.count) for found in stats.length_histogram],
            stats.context_length,
        ),
        notes=[*([PAIRS] if stats.is_paired else []), *_rated(stats), *_labels(stats), stats.describe_checks()],
    )


def _labels(stats: DatasetStats) -> list[str]:
    splits = (("training", stats.train), ("validation", stats.valid))
    counted = [(name, split.labels) for name, split in splits if split is not None and split.labels]
    return [
        f"{name} rows by label: {', '.join(f'{label} {count:,}' for label, count in labels.items())}"
        for name, labels in counted
    ]


def _rated(stats: DatasetStats) -> list[str]:
    return [] if stats.train.rated is None else [f"{RATED}training: {stats.train.rated.describe()}"]


def _rows(stats: DatasetStats) -> list[RowCount]:
    counts = {"in": stats.rows_in, "used": stats.rows_used}
    if stats.truncated:
        counts["used, but cut to the context length"] = stats.truncated
    counts |= {f"dropped: {reason}": count for reason, count in stats.dropped.items()}
    return [RowCount(what, count, count / stats.rows_in) for what, count in counts.items()]

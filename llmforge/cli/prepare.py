"""`llmforge prepare`: the data stage alone, so that training finds its data ready.

In: a job file and overrides. Out: the prepared dataset below `output_dir`, and what it came to: lines for people, or
with `--json` the stable interface for other programs, one line on stdout and nothing else there:

    {"rows_in", "rows_used", "dropped": {reason: n}, "tokens", "trained_tokens", "packs", "packing_efficiency",
     "seconds", "cached", "path"}

Rows, `tokens`, `trained_tokens` and `packs` (sequences for the model) are those of training and validation together,
`packing_efficiency` is that of the training data. `seconds` go from reading to the committed shards, or to finding
them where `cached` is true, without the start of the process and of Ray. Of the model the tokenizer and `config.json`
are needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llmforge.cli.data_stage import PreparedJob, prepare_data
from llmforge.cli.validate import load_checked_job


def run_prepare(job_file: Path, overrides: Sequence[str], *, as_json: bool) -> str:
    """What is to be printed. Raises `LlmforgeError` for whatever is wrong with the job or its data."""
    done = prepare_data(load_checked_job(str(job_file), overrides, with_weights=False))
    return json.dumps(_json_object(done)) if as_json else _text(done)


def _json_object(done: PreparedJob) -> dict[str, object]:
    stats = done.prepared.stats
    return {
        "rows_in": stats.rows_in,
        "rows_used": stats.rows_used,
        "dropped": stats.dropped,
        "tokens": stats.total("tokens"),
        "trained_tokens": stats.total("trained_tokens"),
        "packs": stats.total("samples"),
        "packing_efficiency": stats.train.packing_efficiency,
        "seconds": round(done.seconds, 3),
        "cached": done.prepared.was_cached,
        "path": done.uri,
    }


def _text(done: PreparedJob) -> str:
    how = "found" if done.prepared.was_cached else "prepared"
    return f"{done.prepared.stats.describe()}\n{how} in {done.seconds:.2f} s: {done.uri}"

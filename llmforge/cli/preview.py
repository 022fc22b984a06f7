"""`llmforge preview`: the first rows of a job's training data as the model will see them.

In: a job file, overrides, a number of rows. Out, one of three: coloured text for a terminal, an HTML page, or with
`--json` the stable interface for other programs: one JSON object a line and row, in the order of the files, and nothing
else on stdout:

    {"row": n, "text": ..., "input_ids": [...], "labels": [...], "prompt": {"text": ..., "input_ids": [...]}}
    {"row": n, "error": "file:line: reason"}

`row` is counted from 1 over all files; a label is -100 where no loss is taken; `prompt` is what inference would be
given before the last answer. The second form is a row that is refused. With `task: preference_tuning` the first form is
the conversation with the chosen answer, and has `"rejected": {"text", "input_ids", "labels"}` as well; that of a single
answer that is rated has `"label": true` or `false`. Rows are encoded by the code of the data stage, without Ray; of the
model only the tokenizer and `config.json` are needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console

from llmforge.cli.html_file import check_html_file, write_html_file
from llmforge.cli.local_job import LocalJob, resolve_locally
from llmforge.cli.places import cache_folder
from llmforge.cli.preview_text import PreviewPrinter
from llmforge.cli.validate import format_origin, format_warnings, load_checked_job
from llmforge.config.job import JobConfig
from llmforge.dataset.preview import EncodedRow, PreviewRow, preview_rows
from llmforge.dataset.unused import MAX_PRINTED_ROWS
from llmforge.errors import ConfigError, DataError
from llmforge.metrics.page import ExampleSegment
from llmforge.metrics.preview_page import PageRow, PageTurn, PreviewPage, RefusedRow, write_preview

_LOG = logging.getLogger(__name__)


def run_preview(
    job_file: Path, overrides: Sequence[str], *, num_rows: int, as_json: bool, html_file: Path | None
) -> None:
    """Show the first rows. Raises `LlmforgeError`, a `DataError` where every one of them is refused."""
    if as_json and html_file is not None:
        raise ConfigError("found --json and --html, allowed is one of them: --json is for programs, --html for people")
    if html_file is not None:
        check_html_file(html_file)
    submitted = load_checked_job(str(job_file), overrides, with_weights=False)
    with _without_notices(logging.getLogger("llmforge.config.resolve")):  # on how this machine would train
        local = resolve_locally(submitted)
    warnings = format_warnings(submitted, local.job.prompt_format, local.special_tokens)
    found = preview_rows(local.job, local.tokenizer, cache_folder())
    rows = _unless_all_refused(islice(found, num_rows))
    if as_json:
        for warning in warnings:
            _LOG.warning("%s", warning)
        for row in rows:
            print(json.dumps(_json_object(row)))
        return
    shown = list(rows)
    page = PreviewPage(
        title=f"{job_file}: {'row 1' if len(shown) == 1 else f'rows 1 to {len(shown)}'} as the model sees them",
        facts={
            "model": submitted.model_id,
            "prompt format": format_origin(submitted, is_known=True),
            "trained": _what_is_trained(local.job),
        },
        warnings=warnings,
        rows=[page_row for row in shown for page_row in _page_rows(row, local)],
    )
    if html_file is None:
        PreviewPrinter(Console(highlight=False)).page(page)
    else:
        write_html_file(html_file, partial(write_preview, page=page))
        print(f"preview: {html_file}")


@contextmanager
def _without_notices(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unless_all_refused(rows: Iterable[PreviewRow]) -> Iterator[PreviewRow]:
    """The rows as they are. Raises `DataError` behind the last where none can be trained on."""
    num_rows, reasons = 0, []
    for row in rows:
        num_rows += 1
        if row.encoded is None:
            reasons.append(f"  {row.place}: {row.problem}")
        yield row
    if num_rows == 0:
        raise DataError("train_path: found no row, only blank lines; expected one JSON object per line")
    if len(reasons) == num_rows:
        more = [f"  ... and {num_rows - MAX_PRINTED_ROWS} more"] if num_rows > MAX_PRINTED_ROWS else []
        listed = "\n".join([*reasons[:MAX_PRINTED_ROWS], *more])
        raise DataError(
            f"{num_rows} of {num_rows} rows are refused:\n{listed}\nmend them, or look at more rows with --rows N"
        )


def _json_object(row: PreviewRow) -> dict[str, object]:
    if row.encoded is None:
        return {"row": row.number, "error": f"{row.place}: {row.problem}"}
    encoded = row.encoded
    return {
        "row": row.number,
        **_json_text(encoded),
        "prompt": {"text": encoded.prompt.text, "input_ids": encoded.prompt.input_ids},
        **({} if row.rejected is None else {"rejected": _json_text(row.rejected)}),
        **({} if row.is_desirable is None else {"label": row.is_desirable}),
    }


def _json_text(encoded: EncodedRow) -> dict[str, object]:
    example = encoded.example
    return {"text": encoded.text, "input_ids": example.input_ids.tolist(), "labels": example.labels.tolist()}


def _what_is_trained(job: JobConfig) -> str:
    if job.task == "causal_lm":
        return "every token behind BOS (task: causal_lm)"
    if job.is_paired:
        return f"the two answers of a pair are compared, each with its terminator (task: {job.task})"
    if job.is_rated:
        return f"the last answer of a row, as a good or a bad one, with its terminator (task: {job.task}, loss: kto)"
    if job.labels:
        return f"the label behind the last cue: {' or '.join(job.labels)} (task: {job.task})"
    if job.dataset.train_on == "last_turn":
        return f"the last answer of a row, with its terminator (task: {job.task}, dataset.train_on: last_turn)"
    return f"every answer, with its terminator (task: {job.task})"


def _page_rows(row: PreviewRow, local: LocalJob) -> Iterator[PageRow | RefusedRow]:
    if row.encoded is None:
        yield RefusedRow(row.number, row.place, str(row.problem))
    for place, encoded in row.conversations:
        yield _page_row(row.number, place, encoded, local)


def _page_row(number: int, place: str, encoded: EncodedRow, local: LocalJob) -> PageRow:
    return PageRow(
        number=number,
        place=place,
        segments=[ExampleSegment(piece.text, piece.trained, piece.is_control) for piece in encoded.pieces],
        turns=_turns(encoded),
        learnt=encoded.learnt,
        prompt_text=encoded.prompt.text,
        input_ids=encoded.example.input_ids.tolist(),
        labels=encoded.example.labels.tolist(),
        prompt_ids=encoded.prompt.input_ids,
        notes=list(_notes(encoded, local)),
    )


def _turns(encoded: EncodedRow) -> list[PageTurn]:
    turns = [PageTurn(turn.name, turn.num_tokens, turn.num_trained_tokens) for turn in encoded.turns]
    around = PageTurn(
        "around them",
        len(encoded.example.input_ids) - sum(turn.num_tokens for turn in turns),
        encoded.example.num_trained_tokens - sum(turn.num_trained_tokens for turn in turns),
    )
    return [*turns, around] if around.num_tokens else turns


def _notes(encoded: EncodedRow, local: LocalJob) -> Iterator[str]:
    job, num_tokens = local.job, len(encoded.example.input_ids)
    limit, name = job.context_length, "context_length"
    if limit is None:
        limit, name = local.model.facts.context_length, "the model's longest sequence"
    if limit is not None and num_tokens > limit:
        rule = f"dataset.over_length ({job.dataset.over_length}) says what happens to it"
        if encoded.is_windowed:
            rule = "it is cut into windows of that length"
        yield f"the row has {num_tokens:,} tokens, {name} is {limit:,}: {rule}"
    if encoded.example.num_trained_tokens == 0:
        yield "no token of the row is trained, so it is left out of the training"
    texts = [piece.text for piece in encoded.pieces if not piece.is_control]
    spelled = [token for token in sorted(local.special_tokens) if any(token in text for text in texts)]
    if spelled:
        what = "the text" if encoded.is_windowed else "a message"
        yield f"{what} spells out {', '.join(spelled)}: that stays text, and no control token is made of it"

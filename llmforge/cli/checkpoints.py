"""`llmforge checkpoints`: what a run has saved, and with `--verify` whether every byte of it is what was written.

In: the folder of a run or of one checkpoint. Out: a table for people, or with `--json` the stable interface for other
programs, one object on stdout and nothing else there:

    {"run": ..., "lineage": [{"run", "checkpoint", "step", "uri", "manifest_sha256"}], "checkpoints": [{"name",
     "step", "eval_loss", "size_bytes", "saved_at", "state": "complete" | "unfinished" | "damaged", "is_best",
     "is_latest", "is_verified", "is_being_removed", "ranks_uploaded", "ranks", "problems": [...]}]}

sorted by step. `lineage` has the checkpoints that the run and its ancestors started from, the oldest first. `problems`
are lines of text, of damaged ones only; `ranks` is null where nobody knows them any more.
Progress goes to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from llmforge.checkpoint.find import CheckpointAddress
from llmforge.checkpoint.lineage import Lineage, lineage_json, lineage_of, lineage_text
from llmforge.checkpoint.store import (
    CheckpointInfo,
    CheckpointStore,
    DamagedCheckpoint,
    Survey,
    UnfinishedCheckpoint,
)
from llmforge.errors import CheckpointError
from llmforge.metrics.summary import bytes_text, decimal_text, printable_text
from llmforge.storage.base import open_storage
from llmforge.storage.manifest import FileRecord


@dataclass(frozen=True)
class CheckpointRow:
    """One line of the table."""

    name: str
    step: int
    eval_loss: float | None
    size_bytes: int
    saved_at: datetime
    state: Literal["complete", "unfinished", "damaged"]
    is_best: bool = False
    is_latest: bool = False
    is_verified: bool = False
    """All bytes were read, and are what was written."""
    is_being_removed: bool = False
    ranks_uploaded: int = 0
    ranks: int | None = None
    problems: tuple[str, ...] = ()


def run_checkpoints(uri: str, *, verify: bool, as_json: bool) -> bool:
    """Print the checkpoints of a run; whether all is well, which without `verify` is not asked.

    Raises `CheckpointError` where there is none at all.
    """
    address = CheckpointAddress.of(uri)
    store = CheckpointStore(open_storage(address.run_uri))
    found = store.survey()
    rows = [row for row in _rows(store, found) if address.name in (None, row.name)]
    if not rows:
        raise address.no_checkpoint("checkpoint" if address.name is None else f"checkpoint {address.name}")
    if verify:
        readable = {info.name: info for info in found.complete}
        # A file that the listing lacks may not be the only one that is wrong.
        readable |= {one.name: one.info for one in found.damaged if one.info is not None and not one.is_set_aside}
        checked = [_verified(store, row, readable[row.name]) if row.name in readable else row for row in rows]
        rows = [row for row in checked if row is not None]
    lineage = lineage_of(found.complete[-1]) if found.complete else ()
    if as_json:
        objects = [_json_object(row) for row in rows]
        print(json.dumps({"run": address.run_uri, "lineage": lineage_json(lineage), "checkpoints": objects}))
    else:
        print(printable_text("\n".join([*_table(rows), *_origin(lineage, address.run_uri)])))
    return not verify or all(row.state != "damaged" for row in rows)


def _rows(store: CheckpointStore, found: Survey) -> list[CheckpointRow]:
    best = store.resolve("best").name if found.complete else None
    latest = found.complete[-1].name if found.complete else None
    rows = [_complete(info, is_best=info.name == best, is_latest=info.name == latest) for info in found.complete]
    rows += [_unfinished(save) for save in found.unfinished]
    rows += [_damaged(damaged) for damaged in found.damaged]
    return sorted(rows, key=lambda row: (row.step, row.saved_at))


def _complete(info: CheckpointInfo, *, is_best: bool, is_latest: bool) -> CheckpointRow:
    return CheckpointRow(
        name=info.name,
        step=info.step,
        eval_loss=info.eval_loss,
        size_bytes=info.size_bytes,
        saved_at=info.committed_at,
        state="complete",
        is_best=is_best,
        is_latest=is_latest,
        ranks_uploaded=info.world_size,
        ranks=info.world_size,
    )


def _unfinished(save: UnfinishedCheckpoint) -> CheckpointRow:
    return CheckpointRow(
        name=save.name,
        step=save.step,
        eval_loss=None,
        size_bytes=save.size_bytes,
        saved_at=save.newest_at,
        state="unfinished",
        is_being_removed=save.is_being_removed,
        ranks_uploaded=len(save.uploaded_ranks),
        ranks=save.world_size,
    )


def _damaged(damaged: DamagedCheckpoint) -> CheckpointRow:
    info = damaged.info
    return CheckpointRow(
        name=damaged.name,
        step=damaged.step,
        eval_loss=None if info is None else info.eval_loss,
        size_bytes=damaged.size_bytes if info is None else info.size_bytes,
        saved_at=damaged.newest_at if info is None else info.committed_at,
        state="damaged",
        ranks_uploaded=0 if info is None else info.world_size,
        ranks=None if info is None else info.world_size,
        problems=tuple(damaged.reason.splitlines()),
    )


def _verified(store: CheckpointStore, row: CheckpointRow, info: CheckpointInfo) -> CheckpointRow | None:
    """The row by what its bytes are; None when the checkpoint was removed while they were read."""
    try:
        with _progress(info) as on_progress:
            problems = store.verify(info, on_progress)
    except CheckpointError as error:
        print(printable_text(str(error)), file=sys.stderr)
        return None
    if problems:
        return dataclasses.replace(row, state="damaged", problems=tuple(problems))
    return dataclasses.replace(row, is_verified=row.state == "complete")


@contextmanager
def _progress(info: CheckpointInfo) -> Iterator[Callable[[FileRecord], None]]:
    """A bar for one checkpoint on a terminal, a line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{info.name}: reading {len(info.files)} files, {bytes_text(info.size_bytes)}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(info.name, total=info.size_bytes)
        yield lambda record: progress.advance(task, record.size_bytes)


def _origin(lineage: Lineage, run_uri: str) -> list[str]:
    """What the run started from, and where that lies."""
    if not lineage:
        return []
    run = run_uri.rstrip("/").rpartition("/")[2]
    parents = [f"    {parent.run}: {parent.uri}" for parent in lineage]
    return [f"trained in: {lineage_text(lineage, run)}", *parents]


def _json_object(row: CheckpointRow) -> dict[str, object]:
    return dataclasses.asdict(row) | {"saved_at": row.saved_at.isoformat(), "problems": list(row.problems)}


def _table(rows: Sequence[CheckpointRow]) -> list[str]:
    """Aligned columns; what is wrong with a checkpoint stands below its line."""
    cells = [("name", "step", "validation loss", "size", "saved at (UTC)", "state"), *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    notes = [(), *(row.problems for row in rows)]
    lines = []
    for (name, step, loss, size, saved_at, state), problems in zip(cells, notes, strict=True):
        numbers = f"{step:>{widths[1]}}  {loss:>{widths[2]}}  {size:>{widths[3]}}"
        lines.append(f"{name:<{widths[0]}}  {numbers}  {saved_at:<{widths[4]}}  {state}")
        lines += [f"    {problem}" for problem in problems]
    return lines


def _cells(row: CheckpointRow) -> tuple[str, str, str, str, str, str]:
    loss = "-" if row.eval_loss is None else decimal_text(row.eval_loss, 4)
    saved_at = f"{row.saved_at:%Y-%m-%d %H:%M:%S}"
    return row.name, f"{row.step:,}", loss, bytes_text(row.size_bytes), saved_at, _state_text(row)


def _state_text(row: CheckpointRow) -> str:
    match row.state:
        case "complete":
            words = ["complete and verified" if row.is_verified else "complete"]
            return ", ".join([*words, *(["best"] if row.is_best else []), *(["latest"] if row.is_latest else [])])
        case "unfinished" if row.is_being_removed:
            return "unfinished: being removed"
        case "unfinished":
            of_all = "" if row.ranks is None else f" of {row.ranks}"
            return f"unfinished: {row.ranks_uploaded}{of_all} ranks uploaded"
        case "damaged":
            return "damaged:"

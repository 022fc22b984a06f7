"""`llmforge doctor`: what of this machine, of a cluster and of a storage would stop a job, and what to do about it.

`--json` is the stable interface for other programs, one object on stdout and nothing else there:

    {"ok": ..., "checks": [{"name", "state": "ok" | "note" | "warning" | "failure", "found", "advice"}]}
"""

import os
import textwrap
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from llmforge.doctor.check import Check

_WIDTH = 120
_INDENT = " " * 9

Address = Annotated[
    Optional[str],  # noqa: UP045 - see main.py
    typer.Option(help="Of a Ray cluster: http://head:8265, head:6379 or ray://head:10001. Default: RAY_ADDRESS."),
]
Storages = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--storage", metavar="URI", help="A folder or s3://bucket/prefix to be tried; may be repeated."),
]


def doctor(
    address: Address = None,
    storages: Storages = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """Look for what would stop a job, and say what to do; exit code 1 when something would."""
    from dataclasses import asdict
    from json import dumps

    from llmforge.cli.places import cache_folder
    from llmforge.doctor.diagnosis import DiagnosisRequest, diagnose

    cluster = address or os.environ.get("RAY_ADDRESS") or None
    checks: list[Check] = []
    for check in diagnose(DiagnosisRequest(cache_folder(), cluster, tuple(storages or ()))):
        checks.append(check)
        if not as_json:
            print(_text(check), flush=True)
    failures = sum(check.state == "failure" for check in checks)
    if as_json:
        print(dumps({"ok": not failures, "checks": [asdict(check) for check in checks]}))
    else:
        print(f"\n{failures} of {len(checks)} checks found what would stop a job" if failures else "\nready")
    if failures:
        raise typer.Exit(1)


def _text(check: "Check") -> str:
    """A line, and what to do on further ones."""
    from llmforge.metrics.summary import printable_text

    lines = [f"{check.state:8} {check.name}: {printable_text(check.found)}"]
    if check.advice:
        lines += textwrap.wrap(check.advice, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join(lines)

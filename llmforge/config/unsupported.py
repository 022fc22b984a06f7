"""What the schema knows and llmforge cannot do yet: one table, refused and never ignored.

Works on the plain data of a job, valid or not, so that nothing here hides behind another problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmforge.config.finding import Finding, Path, descend


@dataclass(frozen=True)
class _Missing:
    """One row: what is refused at a path."""

    path: Path
    """`"*"` stands for the value itself where it is not a list, for every item where it is one."""
    refuses: Callable[[Any], bool]
    instead: str
    """What works today."""


def _other_than(*supported: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value not in supported


def _is_other_source(value: Any) -> bool:
    """Plain text files, and addresses of other schemes."""
    if not isinstance(value, str):
        return False
    scheme = value.split("://")[0] if "://" in value else "file"
    return scheme not in ("file", "s3", "hf") or value.lower().removesuffix(".gz").removesuffix(".zst").endswith(".txt")


def _source_rows(key: str) -> tuple[_Missing, ...]:
    files = (
        "allowed for now: files of JSON, CSV, Parquet and Arrow, folders and globs of them, local or s3://, and "
        "Hugging Face datasets"
    )
    return (
        _Missing((key, "*"), _is_other_source, files),
        _Missing((key, "*", "path"), _is_other_source, files),
    )


_TABLE: tuple[_Missing, ...] = (
    *_source_rows("train_path"),
    *_source_rows("valid_path"),
    _Missing(("embedding_scaling_technique",), _other_than("none"), "choose a context_length the model has"),
)


def find_unsupported(data: dict[str, Any]) -> list[Finding]:
    """Everything in the plain data of a job that is in the schema and not supported yet."""
    findings = []
    for row in _TABLE:
        for path, value in _matches(data, row.path, ()):
            if row.refuses(value):
                findings.append(Finding(path, f"not supported yet ({row.instead})"))
    return findings


def unsupported_keys() -> list[tuple[str, str]]:
    """For the documentation: (key, what works today), one for each thing that is refused."""
    rows = ((".".join(str(part) for part in row.path if part != "*"), row.instead) for row in _TABLE)
    return list(dict.fromkeys(rows))


def _matches(data: Any, pattern: Path, path: Path) -> Iterator[tuple[Path, Any]]:
    if not pattern:
        yield path, data
    elif pattern[0] == "*":
        if isinstance(data, list):
            for index, item in enumerate(data):
                yield from _matches(item, pattern[1:], (*path, index))
        else:
            yield from _matches(data, pattern[1:], path)
    else:
        present, value = descend(data, pattern[:1])
        if present:
            yield from _matches(value, pattern[1:], (*path, pattern[0]))

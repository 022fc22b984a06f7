"""Files of JSON lines that a run appends to while it lasts.

In: a file and how one of its lines is read. Out: what the lines hold. A run that is killed may leave a torn last line:
readers pass over it, and the next writer cuts it off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from llmforge.errors import StorageError

_Value = TypeVar("_Value")


def read_json_lines(path: Path, parse: Callable[[bytes], _Value | None], expected: str) -> list[_Value]:
    """What `parse` makes of each line, in order, without a torn last one; it gives None for a line that is broken.

    Raises StorageError for any other broken line, with its number and what was `expected`, and FileNotFoundError.
    """
    values: list[_Value] = []
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        value = parse(line)
        if value is not None:
            values.append(value)
        elif number < len(lines):
            raise StorageError(
                f"{path}:{number}: expected {expected}, found {_excerpt(line)}. Only the last line of such a file may "
                "be broken (a run was killed while it wrote it). Delete that line, or move the file away, and start "
                "again."
            )
    return values


def rewrite(path: Path, lines: Iterable[str]) -> None:
    """Put these lines, each with its end, in place of all that stood there; the file is whole at any moment."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _excerpt(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", errors="replace")) + ("..." if len(line) > 60 else "")

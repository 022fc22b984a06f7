"""What the checks of a job hand back: a path in the job, and what is wrong there.

A finding knows neither files nor lines; `job.py` adds them from where the value was written.
"""

from __future__ import annotations

from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where a value lies: keys and list indices from the root."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong at a path of the job."""

    path: Path
    message: str
    """What was found, what is allowed, why, and what to do."""


def path_text(path: Path) -> str:
    """A path as people write it: `train_path[0].weight`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def descend(data: object, path: Path) -> tuple[bool, object]:
    """(whether there is a value at a path of plain data, the value)."""
    for part in path:
        is_key = isinstance(data, dict) and part in data
        is_index = isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)
        if not (is_key or is_index):
            return False, None
        data = data[part]  # type: ignore[index]
    return True, data

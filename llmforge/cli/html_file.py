"""The file that `--html` names: refused before any work where it cannot be, and written at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmforge.errors import ConfigError


def check_html_file(path: Path) -> None:
    """Said before anything is fetched or encoded. Raises ConfigError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        found = "found a folder" if path.is_dir() else "found no such folder to write it into"
        raise ConfigError(f"--html: {path}: {found}, allowed is a file in a folder that is there")


def write_html_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make the file. Raises ConfigError where it cannot be written."""
    try:
        write(path)
    except OSError as error:
        raise ConfigError(f"--html: {path}: cannot be written: {error.strerror}; name another file") from error

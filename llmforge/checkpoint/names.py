"""Names of checkpoints and of the files that make one: pure functions of step, attempt and rank."""

from __future__ import annotations

import re
import secrets

FOLDER = "checkpoints"
"""Holds one folder a checkpoint, below the run's own."""

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})-([0-9a-z]+)")


def new_attempt_id() -> str:
    """A random word for one start of a run, which all its ranks share.

    It keeps what an earlier start left half-written out of the folders of this one.
    """
    return secrets.token_hex(4)


def checkpoint_name(step: int, attempt_id: str) -> str:
    """`step-00000200-1f2e3d4c`: sorts by step. Raises `ValueError` for a negative step or another form of attempt."""
    name = f"step-{step:08d}-{attempt_id}"
    step_of(name)
    return name


def is_checkpoint_name(name: str) -> bool:
    """Whether `checkpoint_name` could have made it."""
    return _CHECKPOINT_NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step in the name of a checkpoint; `ValueError` when it is not one."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a checkpoint, such as step-00000200-1f2e3d4c")
    return int(match[1])


def rank_manifest_name(rank: int) -> str:
    """The file in which one rank records what it has uploaded."""
    return f"manifest-rank-{rank:05d}.json"

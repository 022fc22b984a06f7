"""Names of checkpoints and of the files that make one: pure functions of step, attempt and rank."""

from __future__ import annotations

import re
import secrets

FOLDER = "checkpoints"
"""Holds one folder a checkpoint, below the run's own."""
DAMAGED_NAME = "damaged.json"
"""Stands in a checkpoint that was set aside."""
RESOLVED_JOB_FILE = "resolved_job.yaml"
"""The job as it was trained: in the folder of the run, and in each checkpoint."""
OPTIMIZER_PREFIX = "optimizer/"
"""Of the files of a checkpoint that only its own training needs."""

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})-([0-9a-z]+)")
_ATTEMPT_WORD = re.compile(r"([0-9a-f]{6})[0-9a-z]{2}[b-z]?")
_RANK_MANIFEST = re.compile(r"manifest-rank-(\d{5,})\.json")
_UPLOAD_RECORD = re.compile(r"upload-rank-\d{5,}\.json")
_REMOVAL_MARK = re.compile(r"removing-[0-9a-f]{8}\.json")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NUM_GROUPS = len(_DIGITS) ** 2
_SAVE_LETTERS = ("", *_DIGITS[11:])


def new_driver_id() -> str:
    """A random word for one start of a job: six hexadecimal digits."""
    return secrets.token_hex(3)


def attempt_word(driver_id: str, group: int, num_saves_before: int = 0) -> str:
    """`3fa29c04`: what keeps the files of one save out of the folder of any other save at the same step.

    `group` counts the worker groups of the driver; `num_saves_before` the saves of this group at this step.
    Raises `ValueError` for what has no such word.
    """
    if not (0 <= group < _NUM_GROUPS and 0 <= num_saves_before < len(_SAVE_LETTERS)):
        raise ValueError(
            f"worker group {group}, save {num_saves_before}: a name has room for {_NUM_GROUPS} worker groups and for"
            f" {len(_SAVE_LETTERS)} saves at one step; start the job again"
        )
    first, second = divmod(group, len(_DIGITS))
    word = f"{driver_id}{_DIGITS[first]}{_DIGITS[second]}{_SAVE_LETTERS[num_saves_before]}"
    driver_of(word)
    return word


def is_attempt_word(attempt: str) -> bool:
    """Whether `attempt_word` could have made it; the eight hexadecimal digits of older runs count as well."""
    return _ATTEMPT_WORD.fullmatch(attempt) is not None


def driver_of(attempt: str) -> str:
    """The id of the driver in an attempt word; `ValueError` when it is not one."""
    match = _ATTEMPT_WORD.fullmatch(attempt)
    if match is None:
        raise ValueError(f"{attempt!r} is not the word of an attempt, such as 3fa29c04")
    return match[1]


def checkpoint_name(step: int, attempt: str) -> str:
    """`step-00000200-3fa29c04`: sorts by step. Raises `ValueError` for a negative step or another form of attempt."""
    name = f"step-{step:08d}-{attempt}"
    step_of(name)
    return name


def is_checkpoint_name(name: str) -> bool:
    """Whether `checkpoint_name` could have made it."""
    return _CHECKPOINT_NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step in the name of a checkpoint; `ValueError` when it is not one."""
    return int(_parts_of(name)[1])


def attempt_of(name: str) -> str:
    """The attempt word in the name of a checkpoint; `ValueError` when it is not one."""
    return _parts_of(name)[2]


def rank_manifest_name(rank: int) -> str:
    """The file in which one rank records what it has uploaded; written behind all of it."""
    return f"manifest-rank-{rank:05d}.json"


def rank_of_manifest(file_name: str) -> int | None:
    """The rank whose manifest this is; None for any other file."""
    match = _RANK_MANIFEST.fullmatch(file_name)
    return None if match is None else int(match[1])


def upload_record_name(rank: int) -> str:
    """The file in which one rank records, while it uploads, what has arrived so far."""
    return f"upload-rank-{rank:05d}.json"


def is_upload_record(file_name: str) -> bool:
    """Whether `upload_record_name` could have made it."""
    return _UPLOAD_RECORD.fullmatch(file_name) is not None


def new_removal_mark() -> str:
    """The file by which one process says that it is about to remove a checkpoint."""
    return f"removing-{secrets.token_hex(4)}.json"


def is_removal_mark(file_name: str) -> bool:
    """Whether `new_removal_mark` could have made it."""
    return _REMOVAL_MARK.fullmatch(file_name) is not None


def _parts_of(name: str) -> re.Match[str]:
    match = _CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a checkpoint, such as step-00000200-3fa29c04")
    return match

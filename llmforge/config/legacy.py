"""Old spellings of job keys, translated: plain data in, plain data out.

Nothing else knows that they exist. A translated key remembers its old path, so that later messages find its line.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llmforge.config.finding import Finding, Path, descend, path_text


@dataclass(frozen=True)
class _OldKey:
    """One row of the table of old spellings."""

    path: Path
    new_path: Path | None
    """None for a key that has no effect any more."""
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Translation:
    """Data without old spellings, and what became of them."""

    data: dict[str, Any]
    renames: dict[Path, Path] = field(default_factory=dict)
    """New path of every translated key to the path it was written at."""
    notices: tuple[Finding, ...] = ()
    """What to tell the user, by old path."""
    conflicts: tuple[Finding, ...] = ()
    """Old keys whose new spelling is given as well."""


def _negated(value: Any) -> Any:
    return not value if isinstance(value, bool) else value


def _every_n_epochs(value: Any) -> dict[str, Any]:
    return {"unit": "epochs", "frequency": value}


_SCALING = ("preference_tuning_config", "logprob_processor_scaling_config")
_OLD_KEYS = (
    _OldKey(("checkpoint_every_n_epochs",), ("checkpoint_and_evaluation_frequency",), _every_n_epochs),
    _OldKey(("max_num_checkpoints",), ("num_checkpoints_to_keep",)),
    _OldKey(("no_gradient_checkpoint",), ("gradient_checkpointing",), _negated),
    _OldKey(("dataset_size_scaling_factor",), None),
    _OldKey(("lora_config", "rank"), ("lora_config", "r")),
    _OldKey((*_SCALING, "worker_resources"), (*_SCALING, "custom_resources")),
)


def translate_legacy(data: dict[str, Any]) -> Translation:
    """A copy of the data of a job with every old spelling replaced by the key that stands for it today."""
    data = deepcopy(data)
    renames: dict[Path, Path] = {}
    notices: list[Finding] = []
    conflicts: list[Finding] = []
    for old in _OLD_KEYS:
        written, value = descend(data, old.path)
        if not written:
            continue
        _parent(data, old.path).pop(old.path[-1])
        if old.new_path is None:
            notices.append(Finding(old.path, "has no effect any more and is left out; remove it"))
            continue
        new_name = path_text(old.new_path)
        if descend(data, old.new_path)[0]:
            conflicts.append(Finding(old.path, f"is the old spelling of {new_name}, which is given as well; remove it"))
            continue
        _parent(data, old.new_path)[old.new_path[-1]] = old.convert(value)
        renames[old.new_path] = old.path
        notices.append(Finding(old.path, f"is an old spelling, read as {new_name}"))
    return Translation(data, renames, tuple(notices), tuple(conflicts))


def _parent(data: Any, path: Path) -> Any:
    """The mapping that holds the last key of a path; old and new keys share their parents."""
    for part in path[:-1]:
        data = data[part]
    return data

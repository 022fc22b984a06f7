"""`key=value` words of the command line: dotted paths to values, parsed as YAML and laid over the data of a job."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from llmforge.config.finding import Finding, Path, path_text
from llmforge.config.yaml_file import parse_yaml
from llmforge.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One value for one path."""

    path: Path
    value: Any


def parse_override(word: str) -> Override:
    """Read `lora_config.r=16`; a number in the path is the index of a list item. Raises ConfigError."""
    path_word, equals, text = word.partition("=")
    parts = path_word.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"found {word!r}, allowed is key=value, such as num_epochs=3 or lora_config.r=16")
    document = parse_yaml(text, path_word)
    if document.problems:
        raise ConfigError.from_problems(document.problems)
    return Override(tuple(int(part) if part.isdecimal() else part for part in parts), document.data)


def nested(override: Override) -> dict[str, Any]:
    """The override as the data of a job that has nothing else."""
    data = override.value
    for part in reversed(override.path):
        data = {part: data}
    return data  # type: ignore[no-any-return]


def apply_override(data: dict[str, Any], override: Override) -> dict[str, Any] | Finding:
    """A copy of the data with the value set, or a finding where the path leads into something that has no keys."""
    result: Any = deepcopy(data)
    place = result
    for depth, part in enumerate(override.path):
        key: Any = part if isinstance(place, list) else str(part)
        if not isinstance(place, dict) and not (isinstance(place, list) and key in range(len(place))):
            where = path_text(override.path[:depth])
            return Finding(override.path, f"cannot be set: {where} is neither a mapping nor a list with such an item")
        if depth == len(override.path) - 1:
            place[key] = deepcopy(override.value)
        elif isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]
    return result  # type: ignore[no-any-return]

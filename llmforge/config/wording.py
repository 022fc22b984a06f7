"""Turns pydantic's errors into ours: what was found, what is allowed, what to do.

What is allowed comes from the JSON schema of the job, so that it is said once, in the types.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from llmforge.config.finding import Finding, Path, descend
from llmforge.config.secrets import redact

_OWN = ("value_error", "missing", "extra_forbidden", "union_tag_invalid")
_TAG_KEYS = ("type", "provider")
"""Keys that choose one alternative of a tagged union."""


def find_schema_problems(errors: Iterable[ErrorDetails], data: dict[str, Any], schema: dict[str, Any]) -> list[Finding]:
    """One finding for each place where `data` does not fit; `schema` is the JSON schema of the whole job."""
    words = _Words(data, schema)
    found = [(words.path(error), error) for error in errors]
    paths = [path for path, _ in found]
    findings: dict[Finding, None] = {}
    for path, error in found:
        # A value that fits no alternative is reported by each of them; the one that went deepest is the one meant.
        if error["type"] not in _OWN and any(len(other) > len(path) and other[: len(path)] == path for other in paths):
            continue
        findings[words.finding(path, error)] = None
    return list(findings)


class _Words:
    """Messages about one job, in the words of its schema."""

    def __init__(self, data: dict[str, Any], schema: dict[str, Any]) -> None:
        self._data = data
        self._schema = schema

    def path(self, error: ErrorDetails) -> Path:
        """Pydantic's location without the names of alternatives, which are no part of the data."""
        path: Path = ()
        for part in error["loc"]:
            if descend(self._data, (*path, part))[0]:
                path = (*path, part)
        return (*path, error["loc"][-1]) if _is_missing_key(error) else path

    def finding(self, path: Path, error: ErrorDetails) -> Finding:
        match error["type"]:
            case "missing" if _is_missing_key(error):
                return Finding(path, f"required, but missing{self._meaning(path)}")
            case "extra_forbidden":
                return Finding(path, f"unknown key{self._suggestion(path)}")
            case "union_tag_invalid":
                key = "provider" if "provider" in error["ctx"]["discriminator"] else "type"
                _, tag = descend(self._data, (*path, key))
                expected = error["ctx"]["expected_tags"].replace("'", "")
                return Finding((*path, key), f"found {_found(tag)}, allowed: {expected}")
            case "union_tag_not_found" if isinstance(descend(self._data, path)[1], dict):
                key = error["ctx"]["discriminator"].strip("'")
                children = [child for node in self._nodes(path[:-1]) for child in _children(node, path[-1])]
                leaves = [leaf for child in children for leaf in self._leaves(child) if "properties" in leaf]
                choices = [leaf["properties"][key]["const"] for leaf in leaves]
                return Finding((*path, key), f"required, but missing; allowed: {', '.join(choices)}")
            case "value_error":
                return Finding(path, redact(error["msg"].removeprefix("Value error, ")))
            case _:
                value = descend(self._data, path)[1]
                nodes = self._nodes(path)
                useful = [node for node in nodes if node.get("type") != "null"] or nodes
                allowed = " or ".join(dict.fromkeys(_allowed(node) for node in useful))
                return Finding(path, f"found {_found(value)}, allowed is {allowed}{_remedy(value, allowed)}")

    def _suggestion(self, path: Path) -> str:
        key = str(path[-1])
        known = self._keys(self._nodes(path[:-1]))
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.65)
        if close:
            return f" (did you mean {close[0]}?)"
        if len(path) > 1 and key in self._schema["properties"]:
            return f" (did you mean {key} at the top level?)"
        for section in self._schema["properties"] if len(path) == 1 else ():
            if key in self._keys(self._nodes((section,))):
                return f" (did you mean {section}.{key}?)"
        return f" (allowed: {', '.join(known)})" if len(path) > 1 else " (llmforge schema lists all keys)"

    def _meaning(self, path: Path) -> str:
        described = [node["description"] for node in self._nodes(path, resolve=False) if "description" in node]
        return f"; {described[0].split('. ')[0].removesuffix('.')}" if described else ""

    def _keys(self, nodes: list[dict[str, Any]]) -> list[str]:
        return [key for node in nodes for key in node.get("properties", {})]

    def _nodes(self, path: Path, resolve: bool = True) -> list[dict[str, Any]]:
        """The alternatives that the schema has for a path."""
        nodes = [self._schema]
        for depth, part in enumerate(path):
            children = [child for node in nodes for child in _children(node, part)]
            last = depth == len(path) - 1
            nodes = children if last and not resolve else [leaf for child in children for leaf in self._leaves(child)]
            value = descend(self._data, path[: depth + 1])[1]
            nodes = [node for node in nodes if _is_chosen(node, value)] or nodes
        return nodes

    def _leaves(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return self._leaves(self._schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
        choices = node.get("anyOf") or node.get("oneOf")
        return [leaf for choice in choices for leaf in self._leaves(choice)] if choices else [node]


def _is_missing_key(error: ErrorDetails) -> bool:
    """A key that is not there; a list that is too short is reported as missing an index."""
    return error["type"] == "missing" and isinstance(error["loc"][-1], str)


def _children(node: dict[str, Any], part: str | int) -> list[dict[str, Any]]:
    if isinstance(part, int):
        prefix = node.get("prefixItems", [])
        child = prefix[part] if part < len(prefix) else node.get("items")
    else:
        child = node.get("properties", {}).get(part) or node.get("additionalProperties")
    return [child] if isinstance(child, dict) else []


def _is_chosen(node: dict[str, Any], value: Any) -> bool:
    """Whether an alternative of a tagged union is the one that the data chooses."""
    properties = node.get("properties", {})
    key = next((key for key in _TAG_KEYS if "const" in properties.get(key, {})), None)
    if key is None or not isinstance(value, dict):
        return True
    tag = properties[key]
    return bool(value.get(key, tag.get("default")) == tag["const"])


def _found(value: Any) -> str:
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "true" if value else "false"
        case str():
            shown = redact(value)
            return f"the text {shown!r}" if len(shown) <= 60 else f"the text {shown[:57] + '...'!r}"
        case float() if not math.isfinite(value):
            return "a number that is not finite"
        case int() | float():
            return repr(value)
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case _:
            return "a mapping"


def _allowed(node: dict[str, Any]) -> str:
    values = [json.dumps(value).strip('"') for value in node.get("enum", [node["const"]] if "const" in node else [])]
    if values:
        return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)
    match node.get("type"):
        case "integer":
            return f"a whole number{_bounds(node)}"
        case "number":
            return f"a number{_bounds(node)}"
        case "boolean":
            return "true or false"
        case "string":
            return _allowed_text(node)
        case "array":
            return f"a list{_lengths(node)}"
        case "object":
            return "a mapping"
        case "null":
            return "null"
        case _:
            return "any value"


def _allowed_text(node: dict[str, Any]) -> str:
    at_most = f" of at most {node['maxLength']} characters" if "maxLength" in node else ""
    such_as = f" such as {', '.join(node['examples'])} (pattern {node['pattern']})" if "pattern" in node else ""
    return f"text{at_most}{such_as}"


def _lengths(node: dict[str, Any]) -> str:
    least, most = node.get("minItems"), node.get("maxItems")
    if least is None:
        return ""
    return f" of at least {least}" if most is None else f" of {least}" if most == least else f" of {least} to {most}"


def _bounds(node: dict[str, Any]) -> str:
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = [f"{word} {node[key]:.10g}" for key, word in names.items() if key in node]
    return f" {' and '.join(parts)}" if parts else ""


def _remedy(value: Any, allowed: str) -> str:
    if isinstance(value, dict) and len(value) == 1 and "text" in allowed:
        name, content = next(iter(value.items()))
        if content is None:
            return f'; quote this value: "{{{name}}}"'
    if value is None and allowed.startswith("text"):
        return "; quote it if it begins with #, which starts a comment"
    if value == "" and allowed.startswith("text"):
        return " that is not empty"
    if isinstance(value, str) and "number" in allowed and _is_number(value):
        return "; remove the quotes"
    if isinstance(value, int | float) and not isinstance(value, bool) and "text" in allowed:
        return "; put it in quotes"
    if isinstance(value, bool) and "text" in allowed:
        return "; put it in quotes (yes, no, on and off mean true and false)"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

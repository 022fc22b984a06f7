"""Kubernetes' schemas of custom resources as JSON schemas that refuse what a cluster would drop without a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

_VERSIONS = "  versions:\n"
_VERSION_BEGINS = re.compile(r"^  - ", flags=re.MULTILINE)


def resource_validator(definition: Path) -> Draft7Validator:
    """Of the first version in the file of a CustomResourceDefinition.

    The other versions are cut off before the file is parsed, which takes half of the time.
    """
    head, versions = definition.read_text(encoding="utf-8").split(_VERSIONS)
    _, *later = [begin.start() for begin in _VERSION_BEGINS.finditer(versions)]
    first = versions[: min(later, default=len(versions))]
    document = yaml.load(head + _VERSIONS + first, Loader=yaml.CSafeLoader)
    (version,) = document["spec"]["versions"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    # The schema leaves open what every object of Kubernetes has.
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    schema["properties"] |= {
        "apiVersion": {"const": f"{document['spec']['group']}/{version['name']}"},
        "kind": {"const": document["spec"]["names"]["kind"]},
    }
    return Draft7Validator(schema | {"required": ["apiVersion", "kind", "metadata", "spec"]})


def _strict(schema: Any) -> Any:
    """A structural schema in which only known keys are allowed, as `kubectl apply --validate=strict` has it."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    is_object = isinstance(result.get("properties"), dict) and result.get("type") == "object"
    if is_object and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result

"""The model that every section of a job derives from.

Unknown keys are errors, values are frozen, infinities are refused, and a field is documented by the docstring beneath
it. Validators of sections judge and never edit: defaults that depend on other things come from `resolve.py`.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, ValidationError

PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Text that may be part of a folder's name everywhere."""


class StrictModel(BaseModel):
    """A frozen section of the job that knows all of its keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def first_problem(error: ValidationError) -> str:
    """Where a record that a program has written does not hold what it should, and what is wrong there."""
    first = error.errors(include_url=False)[0]
    return ": ".join([*(str(part) for part in first["loc"]), first["msg"]])


def _check_finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("found a number that is not finite, which JSON cannot hold")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_finite(child)
    return value


FreeValue = Annotated[JsonValue, AfterValidator(_check_finite)]
"""Any JSON value, for settings that another program judges."""

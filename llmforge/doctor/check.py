"""What one look at a machine or a cluster has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "failure"]
"""`note`: something that a job may well do without. `failure`: what would stop a job."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """Such as `disk`; several checks may share it."""
    state: State
    found: str
    advice: str = ""
    """What to do; empty where there is nothing to do."""

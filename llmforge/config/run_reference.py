"""`run:NAME`: how a job names an earlier run as the start of its weights.

In: what a job gives as initial weights. Out: the name of the run and which of its checkpoints is meant, or nothing for
any other address. Nothing is looked up here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmforge.config.base import PLAIN_NAME

PREFIX = "run:"
_NAME = PLAIN_NAME.removeprefix("^").removesuffix("$")
_FORM = re.compile(rf"run:(?P<run>{_NAME})(@(?P<checkpoint>{_NAME}))?")


@dataclass(frozen=True)
class RunReference:
    """A run below the `output_dir` of the job that names it, and one of its checkpoints."""

    run: str
    checkpoint: str = "best"
    """best, latest, or the name of a checkpoint."""

    def __str__(self) -> str:
        return f"{PREFIX}{self.run}" + ("" if self.checkpoint == "best" else f"@{self.checkpoint}")

    @property
    def is_fixed(self) -> bool:
        """Whether it means the same checkpoint at any time."""
        return self.checkpoint not in ("best", "latest")

    @classmethod
    def of(cls, address: object) -> RunReference | None:
        """None for what does not begin with `run:`. Raises ValueError for what does and has not the form of one."""
        if not isinstance(address, str) or not address.startswith(PREFIX):
            return None
        match = _FORM.fullmatch(address)
        if match is None:
            raise ValueError(
                f"found {address!r}, allowed is run:NAME, the name of a run in output_dir, or run:NAME@CHECKPOINT with"
                " best, latest or the name of a checkpoint; a folder of such a name is written ./run:..."
            )
        return cls(match["run"], match["checkpoint"] or "best")

"""A run in Weights & Biases, online or in files that `wandb sync` sends later.

A run that goes on has the same id, so it is the same run there. Every record is a row with the key `step`, over which
all is drawn: rows cannot be taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmforge.config.loggers import WandbSettings
from llmforge.config.secrets import redact
from llmforge.errors import LoggerError
from llmforge.metrics.services import Measured, RunFacts, Status

_EXIT_CODES: dict[Status, int] = {"finished": 0, "failed": 1, "stopped": 130}


class WandbService:
    """The run `run_id` of a project; it goes on where it is there already."""

    forgets_lost_steps = False

    def __init__(self, settings: WandbSettings, run_id: str, facts: RunFacts, *, is_online: bool) -> None:
        import wandb

        # Of its own accord it would take over what is printed, send the state of the repository, and measure this
        # machine, which is not where the workers are.
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        logging.getLogger("wandb").setLevel(logging.ERROR)
        with _explained():
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or facts.name,
                tags=settings.tags,
                dir=settings.dir,
                mode="online" if is_online else "offline",
                id=run_id,
                resume="allow",
                config=dict(facts.params),
                allow_val_change=True,
                settings=quiet,
            )
            self._run.define_metric("*", step_metric="step")
        self.link(facts.links)
        folder = Path(self._run.dir).parent
        self.place = str(self._run.url) if is_online else f"{folder} (offline: wandb sync sends it)"

    def begin(self, step: int) -> None:
        with _explained():
            self._run.summary["status"] = "running"

    def log(self, records: Sequence[Measured]) -> None:
        with _explained():
            for record in records:
                self._run.log({"step": record.step, **record.values})

    def link(self, links: Mapping[str, str]) -> None:
        with _explained():
            self._run.summary.update({f"links/{key}": uri for key, uri in links.items()})

    def finish(self, status: Status) -> None:
        with _explained():
            self._run.summary["status"] = status
            self._run.finish(exit_code=_EXIT_CODES[status])


@contextmanager
def _explained() -> Iterator[None]:
    import wandb.errors

    try:
        yield
    except (wandb.errors.Error, OSError) as error:
        raise LoggerError(
            f"wandb: {redact(str(error))}; check WANDB_API_KEY, WANDB_BASE_URL, project and entity"
        ) from error

"""`llmforge configs` and `llmforge cp`: the jobs that come with llmforge, listed and copied.

`--json` is the stable interface for other programs, one object on stdout and nothing else there:

    {"jobs": [{"name", "summary", "needs", "model_id", "method": "lora" | "full", "num_devices", "path"}]}
"""

from pathlib import Path
from typing import Annotated, Optional

import typer


def configs(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """List the jobs that come with llmforge, to start one's own from."""
    from dataclasses import asdict
    from json import dumps

    from llmforge.config.shipped import shipped_folder, shipped_jobs

    jobs = shipped_jobs(shipped_folder())
    if as_json:
        print(dumps({"jobs": [asdict(job) | {"path": str(job.path)} for job in jobs]}))
        return
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        print(f"{job.name:{width}}  {job.summary}")
    print("\nllmforge cp NAME my-job.yaml copies one; its first lines say what it needs")


def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `llmforge configs` lists it.", show_default=False)],
    target: Annotated[Optional[Path], typer.Argument(metavar="[FILE]", help="Default: NAME.yaml, here.")] = None,  # noqa: UP045
) -> None:
    """Copy a job that comes with llmforge to a file of one's own; no file is replaced."""
    from llmforge.config.shipped import copy_shipped, shipped_folder

    file = copy_shipped(name, target or Path(), shipped_folder())
    print(f"{file}: change model_id, train_path and output_dir to yours, then: llmforge validate {file}")

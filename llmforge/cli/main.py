"""The command line: parse, call one function, print.

Every command imports what it needs when it runs, so that those which need no model start at once. An `LlmforgeError` is
printed without a traceback and ends with exit code 2; anything else is a bug and shows one.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from llmforge import __version__
from llmforge.cli.answer_commands import chat, generate
from llmforge.cli.configs import configs, cp
from llmforge.cli.doctor import doctor
from llmforge.cli.export_commands import export, verify
from llmforge.cli.job_commands import COMMANDS as JOB_COMMANDS
from llmforge.cli.serve import serve
from llmforge.errors import ConfigError, LlmforgeError

app = typer.Typer(
    help="Fine-tune large language models on a Ray cluster from one job file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this form on every supported Python
    typer.Argument(metavar="[KEY=VALUE]...", help="Values laid over the job file, such as lora_config.r=16."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own output and where the time went.")]


@app.command()
def train(
    job_file: JobFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint of the run.")] = False,
    verbose: Verbose = False,
    submitted_by: Annotated[Optional[str], typer.Option("--submitted-by", metavar="VERSION", hidden=True)] = None,  # noqa: UP045
) -> None:
    """Prepare the data, train, evaluate and save: the whole job."""
    from llmforge.cli.train import run_train

    run_train(job_file, overrides or [], resume=resume, verbose=verbose, submitted_by=submitted_by)


@app.command()
def validate(
    job_file: JobFile,
    overrides: Overrides = None,
    schema_only: Annotated[bool, typer.Option("--schema-only", help="Leave the named files alone.")] = False,
    data: Annotated[bool, typer.Option("--data", help="Go on to check every row of the data.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", metavar="FILE", help="--data: write a page too.")] = None,  # noqa: UP045
    device_memory_gib: Annotated[Optional[float], typer.Option(min=1, help="--data: memory of a device.")] = None,  # noqa: UP045
    tokens_per_second: Annotated[Optional[float], typer.Option(min=1, help="--data: of all devices.")] = None,  # noqa: UP045
    price_per_device_hour: Annotated[Optional[float], typer.Option(min=0, help="--data: for the cost.")] = None,  # noqa: UP045
) -> None:
    """Check a job before any machine is taken; with --data also say what its data, memory, time and cost come to."""
    if schema_only and data:
        raise ConfigError("found --schema-only and --data, allowed is one of them: --data reads the files")
    assumed = {
        "--device-memory-gib": device_memory_gib,
        "--tokens-per-second": tokens_per_second,
        "--price-per-device-hour": price_per_device_hour,
    }
    for name, value in {"--html": html, **assumed}.items():
        if value is not None and not data:
            raise ConfigError(f"found {name} without --data; add --data: only the data can say it")
    if data:
        from llmforge.cli.check_data import Assumptions, run_check_data

        print(run_check_data(job_file, overrides or [], Assumptions(*assumed.values()), html_file=html))
    else:
        from llmforge.cli.validate import run_validate

        print(run_validate(str(job_file), overrides or [], schema_only=schema_only))


@app.command()
def prepare(
    job_file: JobFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """Prepare the data and go no further; training then finds them ready."""
    from llmforge.cli.prepare import run_prepare

    print(run_prepare(job_file, overrides or [], as_json=as_json))


@app.command()
def preview(
    job_file: JobFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, metavar="N", help="How many rows.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, for other programs.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", metavar="FILE", help="Write a page instead.")] = None,  # noqa: UP045
) -> None:
    """Show the first rows of the training data as the model will see them, and what of them is trained."""
    from llmforge.cli.preview import run_preview

    run_preview(job_file, overrides or [], num_rows=rows, as_json=as_json, html_file=html)


@app.command()
def schema() -> None:
    """Print the JSON schema of a job file, for editors."""
    import json

    from llmforge.config.job import job_json_schema

    print(json.dumps(job_json_schema(), indent=2))


app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(export)
app.command()(verify)
app.command()(configs)
app.command()(cp)
app.command()(doctor)
for job_command in JOB_COMMANDS:
    app.command()(job_command)


@app.command()
def checkpoints(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or a checkpoint, local or s3://.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all bytes; exit code 1 when any is wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """List the checkpoints of a run: step, loss, size, and whether they are complete."""
    from llmforge.cli.checkpoints import run_checkpoints

    if not run_checkpoints(source, verify=verify, as_json=as_json):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options before any command."""
    if show:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `llmforge` command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package_logger = logging.getLogger("llmforge")
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)
    # Where it is installed, PEFT imports it for whatever it does, and it tells of kernels that nothing here asks for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except LlmforgeError as error:
        from llmforge.metrics.summary import printable_text

        # Messages quote data and file names.
        print(printable_text(str(error)), file=sys.stderr)
        sys.exit(2)

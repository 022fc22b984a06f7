"""The options of the commands that talk to a cluster, as `main.py` registers them."""

from typing import Annotated, Optional

import typer

# The unions are written as typer reads them on every supported Python.
Address = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--address", metavar="URL", help="The dashboard, as http://head:8265; default: RAY_ADDRESS."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run; the exit code is then the run's.")]
JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Values laid over the job file, such as lora_config.r=16."),
]
ClusterPaths = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--cluster-path", metavar="FOLDER", help="A folder that all nodes see; may be repeated."),
]
RuntimeEnv = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--runtime-env", metavar="FILE.yaml", help="More for Ray's runtime environment, such as pip."),
]


def submit(
    job_file: JobFile,
    overrides: Overrides = None,
    address: Address = None,
    cluster_path: ClusterPaths = None,
    runtime_env: RuntimeEnv = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of this run_name.")] = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Check a job here, send it with its files to a cluster, and say the name of its run."""
    from llmforge.cli.submit import SubmitOptions, run_submit

    options = SubmitOptions(address, tuple(cluster_path or ()), runtime_env, resume=resume, wait=wait, as_json=as_json)
    _leave(run_submit(job_file, overrides or [], options))


def resume(run: Run, address: Address = None, wait: Wait = False, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped or has failed, from its latest checkpoint."""
    from llmforge.cli.submit import run_resume

    _leave(run_resume(run, address, wait=wait, as_json=as_json))


def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the runs of a cluster."""
    from llmforge.cli.jobs import run_jobs

    run_jobs(address, as_json=as_json)


def status(run: Run, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a run is; the exit code says it too: 0 done, 1 failed, 2 wrong job, 3 running, 4 stopped."""
    from llmforge.cli.jobs import run_status

    _leave(run_status(run, address, as_json=as_json))


def logs(
    run: Run,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for other programs.")] = False,
) -> None:
    """Print what a run has said."""
    from llmforge.cli.jobs import run_logs

    _leave(run_logs(run, address, follow=follow, as_json=as_json))


def stop(
    run: Run,
    address: Address = None,
    now: Annotated[bool, typer.Option("--now", help="Kill it; what came after its last save is lost.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a run save and end; `llmforge resume` goes on with it."""
    from llmforge.cli.stop import run_stop

    _leave(run_stop(run, address, now=now, wait=not no_wait, as_json=as_json))


COMMANDS = (submit, jobs, status, logs, stop, resume)


def _leave(exit_code: int) -> None:
    if exit_code:
        raise typer.Exit(exit_code)

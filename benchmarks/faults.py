"""Runs on S3 that are disturbed at random moments: what is lost, what is half visible, and whether they end the same.

    PYTHONPATH=. python benchmarks/faults.py S3_SERVER_BIN MODEL_FOLDER ROWS.jsonl --kill-points 200 --seed 1
    PYTHONPATH=. python benchmarks/faults.py S3_SERVER_BIN MODEL_FOLDER ROWS.jsonl --short
    PYTHONPATH=. python benchmarks/faults.py S3_SERVER_BIN --ranks --kill-points 200 --seed 1
    PYTHONPATH=. python benchmarks/faults.py --report faults.jsonl

Whole `llmforge train` processes train a small real model on real rows and save to a real S3 server, through a proxy.
At random moments a worker, all workers, the driver or the server is killed with SIGKILL, or the network fails; see
tests/faults/. With `--ranks`, only the ranks of a tiny model are killed, and the server, without Ray and without a
driver; that takes seconds for each kill, so many more fit into an hour. What lies on the server is judged after each
disturbance and at the end of each run, without llmforge. A kill point is a disturbance with a SIGKILL. Results are
appended to a file as they come (`--results`), one JSON object a line; the table is made of that file, so that several
campaigns, and those that were cut short, are reported as one. The exit code is 1 if anything went wrong that must never
go wrong.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from tests.faults.campaign import END, FAILURE, Incident, disturbed_runs, undisturbed_run
from tests.faults.judge import Problem, ProblemKind
from tests.faults.rank_campaign import CASES, STRIKES, disturbed_ranks, open_rank_site
from tests.faults.site import Material, Method, Plan, open_site
from tests.faults.strikes import KILLS, KINDS, draw_kinds

METHODS: tuple[Method, ...] = ("lora", "full")
SHORT_PLAN = Plan(num_steps=40, save_interval_steps=4, calm_seconds=3)
SHORT_KINDS: Sequence[str] = ("bursts of 500 and 503", "worker", "server", "driver", "uploads broken")
PROBLEMS: tuple[ProblemKind, ...] = ("half visible", "lost", "not the newest", "diverged", "failed")


def main() -> None:
    """Disturb runs, then print the table of all results in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, nargs="*", metavar="S3_SERVER_BIN MODEL_FOLDER ROWS")
    parser.add_argument("--kill-points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="one run with a handful of disturbances, in a fixed order")
    parser.add_argument("--ranks", action="store_true", help="kill ranks without Ray")
    parser.add_argument("--num-cases", type=int, default=len(CASES), help="--ranks: kinds of training that take turns")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"))
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    arguments = parser.parse_args()
    if arguments.report is None:
        if len(arguments.material) != (1 if arguments.ranks else 3):
            parser.error("S3_SERVER_BIN, MODEL_FOLDER and ROWS are needed; with --ranks the first alone")
        with arguments.results.open("a") as file:
            for incident in (rank_campaign if arguments.ranks else campaign)(arguments):
                file.write(json.dumps(dataclasses.asdict(incident)) + "\n")
                file.flush()
                tell(incident)
    incidents = read(arguments.report or arguments.results)
    print("\n".join(table(incidents)))
    sys.exit(any(incident.problems for incident in incidents))


def rank_campaign(arguments: argparse.Namespace) -> Iterator[Incident]:
    """Ranks alone."""
    with open_rank_site(arguments.material[0].absolute()) as site:
        yield from disturbed_ranks(site, arguments.kill_points, arguments.seed, CASES[: arguments.num_cases])


def campaign(arguments: argparse.Namespace) -> Iterator[Incident]:
    """Whole runs. The short form is always the same but for its moments, and has one run."""
    material = Material(*(path.absolute() for path in arguments.material))
    kinds = SHORT_KINDS if arguments.short else draw_kinds(arguments.kill_points, arguments.seed)
    with open_site(material, SHORT_PLAN if arguments.short else Plan()) as site:
        expected = {method: undisturbed_run(site, method) for method in (METHODS[:1] if arguments.short else METHODS)}
        yield from disturbed_runs(site, arguments.seed, kinds, expected)


def tell(incident: Incident) -> None:
    """One line as it happens, on stderr."""
    resumed = "" if incident.resumed_step is None else f", resumed from {incident.resumed_step}"
    seconds = "" if incident.seconds is None else f", {incident.seconds:.1f} s"
    complete = f"step {incident.step}, complete {incident.complete_step}"
    print(f"{incident.run}: {incident.kind}: {complete}{resumed}{seconds}", file=sys.stderr, flush=True)
    for problem in incident.problems:
        print(f"    {problem.kind}: {problem.text}", file=sys.stderr, flush=True)


def read(path: Path) -> list[Incident]:
    """The results in a file."""
    incidents = []
    with path.open() as file:
        for line in file:
            record = json.loads(line)
            problems = tuple(Problem(**problem) for problem in record.pop("problems"))
            incidents.append(Incident(**record, problems=problems))
    return incidents


def table(incidents: Sequence[Incident]) -> Iterator[str]:
    """In Markdown: a row for each kind, and the sums of those with and without a kill."""
    columns = ["disturbance", "times", "resumed", "steps lost, mean / most", "s until it went on, median / most"]
    columns += PROBLEMS
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    by_kind = {
        kind: [incident for incident in incidents if incident.kind == kind] for kind in (*KINDS, *STRIKES, FAILURE, END)
    }
    kills = [incident for incident in incidents if incident.kind in KILLS or incident.kind in STRIKES]
    for name, found in {**by_kind, "**all kill points**": kills, "**all**": incidents}.items():
        if found:
            yield row(name, found)


def row(name: str, incidents: Sequence[Incident]) -> str:
    """One row of the table."""
    lost = [incident.lost_steps for incident in incidents if incident.lost_steps is not None]
    seconds = [incident.seconds for incident in incidents if incident.seconds is not None]
    cells = [
        name,
        str(len(incidents)),
        str(sum(incident.resumed_step is not None for incident in incidents)),
        f"{mean(lost):.1f} / {max(lost)}" if lost else "",
        f"{median(seconds):.1f} / {max(seconds):.1f}" if seconds else "",
    ]
    kinds = Counter(problem.kind for incident in incidents for problem in incident.problems)
    return f"| {' | '.join([*cells, *(str(kinds[kind]) for kind in PROBLEMS)])} |"


if __name__ == "__main__":
    main()

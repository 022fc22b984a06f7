"""The table of `benchmarks/faults.py`."""

from __future__ import annotations

import json
import runpy
from dataclasses import asdict
from pathlib import Path

from tests.faults.campaign import END, Incident
from tests.faults.judge import Problem


def test_a_file_of_results_becomes_a_table(repository: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(repository / "benchmarks" / "faults.py"))
    lost = Problem("lost", "step-00000008-aa: was complete, and is not any more")
    incidents = [
        Incident("worker", "run-000", step=13, complete_step=8, resumed_step=8, seconds=10.0, problems=()),
        Incident("worker", "run-000", step=18, complete_step=16, resumed_step=16, seconds=14.0, problems=(lost,)),
        Incident("worker", "run-000", step=None, complete_step=16, resumed_step=16, seconds=4.0, problems=()),
        Incident("server", "run-000", step=20, complete_step=16, resumed_step=None, seconds=2.0, problems=()),
        Incident("stall", "run-000", step=20, complete_step=16, resumed_step=None, seconds=3.0, problems=()),
        Incident(END, "run-000", step=240, complete_step=240, resumed_step=None, seconds=None, problems=()),
    ]
    file = tmp_path / "faults.jsonl"
    file.write_text("".join(json.dumps(asdict(incident)) + "\n" for incident in incidents))
    assert script["read"](file) == incidents
    assert list(script["table"](incidents))[2:] == [
        "| worker | 3 | 3 | 3.5 / 5 | 10.0 / 14.0 | 0 | 1 | 0 | 0 | 0 |",
        "| server | 1 | 0 |  | 2.0 / 2.0 | 0 | 0 | 0 | 0 | 0 |",
        "| stall | 1 | 0 |  | 3.0 / 3.0 | 0 | 0 | 0 | 0 | 0 |",
        "| end of a run | 1 | 0 |  |  | 0 | 0 | 0 | 0 | 0 |",
        "| **all kill points** | 4 | 3 | 3.5 / 5 | 7.0 / 14.0 | 0 | 1 | 0 | 0 | 0 |",
        "| **all** | 6 | 3 | 3.5 / 5 | 4.0 / 14.0 | 0 | 1 | 0 | 0 | 0 |",
    ]

"""Where the start of a two-worker job goes: from the command to the first step, and how much of it is imports.

    python benchmarks/startup.py build/quickstart

The folder is the one that `scripts/make_quickstart.py` makes. The job is started twice and the second start is told, so
that files are in the page cache. The imports of torch, ray, transformers, deepspeed and peft are not ours to speed up.
They are measured alone, in fresh processes, as many at a time as a start has them one behind the other: ray and torch
in the driver, ray.data in both data tasks, ray and torch in Ray Train's controller, and in both workers and the process
that watches their resources at once; then transformers, deepspeed and peft in both workers at once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAY = "import ray.train.torch"
RAY_DATA = "import ray.data"
ALL = f"{RAY}, transformers, deepspeed, peft, ray.data"
FIRST_STEP = "step 1 of"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, help="folder made by scripts/make_quickstart.py")
    arguments = parser.parse_args()
    start_seconds(arguments.material)
    total = start_seconds(arguments.material)
    ray, ray_in_three, all_in_two = import_seconds(RAY, 1), import_seconds(RAY, 3), import_seconds(ALL, 2)
    ray_in_two = import_seconds(RAY, 2)
    rows = [
        ("driver: ray, torch", ray),
        ("data tasks: ray.data", import_seconds(RAY_DATA, 2) - import_seconds("import ray", 2)),
        ("controller: ray, torch", ray),
        ("workers: ray, torch", ray_in_three),
        ("workers: transformers, deepspeed, peft", all_in_two - ray_in_two),
    ]
    imports = sum(seconds for _, seconds in rows)
    for name, seconds in [
        *rows,
        ("imports", imports),
        ("command to first step", total),
        ("without imports", total - imports),
    ]:
        print(f"{name:<42}{seconds:6.1f} s")


def start_seconds(material: Path) -> float:
    """Seconds from the command to the first step of the quickstart's job, its data not yet prepared."""
    with tempfile.TemporaryDirectory() as output:
        command = [str(Path(sys.executable).with_name("llmforge")), "train", "job_configs/quickstart.yaml"]
        overrides = [
            f"model_id={material / 'model'}",
            f"train_path={material / 'data' / 'train.jsonl'}",
            f"valid_path={material / 'data' / 'valid.jsonl'}",
            f"output_dir={output}",
            "max_steps=1",
            "num_epochs=1",
            "eval_first=false",
        ]
        started = time.perf_counter()
        with subprocess.Popen([*command, *overrides], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = []
            seconds = None
            for line in process.stderr:
                lines.append(line)
                if seconds is None and line.startswith(FIRST_STEP):
                    seconds = time.perf_counter() - started
        if process.returncode != 0 or seconds is None:
            sys.exit("".join(lines))
        return seconds


def import_seconds(statement: str, num_processes: int) -> float:
    """Seconds until that many processes, started at once, have done their imports."""
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", statement]) for _ in range(num_processes)]
    for process in processes:
        process.wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

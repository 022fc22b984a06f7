"""The training step beside other programs: the same model, rows, packing, precision and optimizer, in one run.

    python benchmarks/train.py [--peer-python PATH] [--repetitions 3] [--json FILE]

A Llama of random weights trains on real conversations (dolly, GSM8K and OpenAssistant in turn), packed by llmforge.
Programs take turns, `--repetitions` times, each in a process of its own: the loops and trainers of train_peers.py, and
`llmforge train` as a user runs it, with one worker and with two. Tokens per second are those of all steps after the
first two; the ratio is the median of those in the same repetition. Memory is the most that the process which computes
has held, for several workers that of the one that took most; Ray's own processes are not in it.

Other programs run in `--peer-python`, the Python of an environment that has them; what is not installed there is left
out. The material is a folder with `tokenizers/llama2-hf` and `data/chat`, by default that of the tests.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from train_plan import WARM_UP_STEPS, Result, read_result

HERE = Path(__file__).resolve().parent
PEERS = {
    "raw": "raw loop: all logits, block mask",
    "strong": "raw loop: trained positions, attention per document",
    "trainer": "HF Trainer",
    "trl": "TRL SFTTrainer, its own packing",
}
NEEDED = {"raw": "transformers", "strong": "transformers", "trainer": "accelerate", "trl": "trl"}
IMPORTED = "import resource, llmforge.train.worker; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
PARTS = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Site:
    """Where programs run."""

    folder: Path
    peer_python: str
    environment: Mapping[str, str]
    sequences_per_step: int
    import_bytes: int
    """Of a worker of llmforge."""


def main() -> None:
    """Measure and print a table."""
    arguments = parse()
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory(prefix="train-") as scratch:
        folder = Path(scratch)
        make_material(arguments, folder, environment)
        imported = subprocess.run([sys.executable, "-c", IMPORTED], check=True, stdout=subprocess.PIPE, env=environment)
        site = Site(
            folder, arguments.peer_python, environment, arguments.sequences_per_step, int(imported.stdout.split()[-1])
        )
        programs = [name for name in arguments.programs if is_there(name, site)]
        results: dict[str, list[Result]] = {name: [] for name in programs}
        for repetition in range(arguments.repetitions):
            shift = repetition % len(programs)
            for name in (*programs[shift:], *programs[:shift]):
                results[name].append(run(name, site, repetition))
                print(f"{repetition + 1}. {name}: {results[name][-1].trained_tokens_per_second:.0f}", file=sys.stderr)
    print("\n".join(table(results)))
    if arguments.json is not None:
        found = {name: [asdict(result) for result in values] for name, values in results.items()}
        arguments.json.write_text(json.dumps({"options": vars(arguments), "results": found}, default=str, indent=1))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    material = os.environ.get("LLMFORGE_MATERIAL") or HERE.parent.parent / "shared" / "material"
    parser.add_argument("--material", type=Path, default=Path(material))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--programs", nargs="+", choices=[*PEERS, "1", "2"], default=[*PEERS, "1", "2"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--sequences-per-step", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=10, help=f"of which {WARM_UP_STEPS} do not count")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--threads", type=int, default=1, help="of each process that computes")
    return parser.parse_args()


def make_material(arguments: argparse.Namespace, folder: Path, environment: Mapping[str, str]) -> None:
    """In a process of its own, so that this one stays small: what it starts is charged with its memory."""
    names = ("layers", "hidden", "vocabulary", "context_length", "sequences_per_step", "num_steps", "precision")
    settings = {name: getattr(arguments, name) for name in (*names, "method", "threads")}
    (folder / "settings.json").write_text(json.dumps({"material": str(arguments.material.resolve()), **settings}))
    command = [sys.executable, str(HERE / "train_material.py"), str(folder / "settings.json"), str(folder)]
    subprocess.run(command, check=True, env=environment)


def is_there(name: str, site: Site) -> bool:
    """Whether a program can run; says so where it cannot."""
    if name not in PEERS:
        return True
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({NEEDED[name]!r}) is None)"
    found = subprocess.run([site.peer_python, "-c", code], env=site.environment).returncode == 0
    if not found:
        print(f"left out: {PEERS[name]}, since {site.peer_python} has no {NEEDED[name]}")
    return found


def run(name: str, site: Site, repetition: int) -> Result:
    """One program in a new process."""
    if name not in PEERS:
        return run_llmforge(int(name), site, f"run-{name}-{repetition}")
    call([site.peer_python, str(HERE / "train_peers.py"), name, str(site.folder)], site)
    return read_result(site.folder / f"{name}.json")


def run_llmforge(num_workers: int, site: Site, run_name: str) -> Result:
    """`llmforge train`, with the sequences of a step divided among the workers."""
    overrides = [
        f"run_name={run_name}",
        f"num_devices={num_workers}",
        f"train_batch_size_per_device={site.sequences_per_step // num_workers}",
    ]
    call([str(Path(sys.executable).with_name("llmforge")), "train", str(site.folder / "job.json"), *overrides], site)
    (file,) = (site.folder / "runs").glob(f"{run_name}*/metrics.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return result_of([record for record in records if "train/loss" in record], site.import_bytes)


def result_of(records: Sequence[Mapping[str, float]], import_bytes: int) -> Result:
    """From the metric records of all steps (docs/metrics.md)."""
    counted = records[WARM_UP_STEPS:]

    def total(key: str) -> int:
        return round(sum(record[key] * record["train/step_seconds"] for record in counted))

    return Result(
        seconds=sum(record["train/step_seconds"] for record in counted),
        num_tokens=total("train/tokens_per_second"),
        num_trained_tokens=total("train/trained_tokens_per_second"),
        num_token_pairs=0,
        last_loss=records[-1]["train/loss"],
        peak_bytes=int(max(record["train/peak_memory_bytes"] for record in records)),
        import_bytes=import_bytes,
        part_seconds={part: statistics.median(one[f"train/{part}_seconds"] for one in counted) for part in PARTS},
    )


def call(command: Sequence[str], site: Site) -> None:
    """Run a command; what it wrote is shown where it fails."""
    done = subprocess.run(
        command, env=site.environment, cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}")


def table(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """Rows of a Markdown table, and the parts of a step of llmforge."""
    rows = [
        "| | tokens/s | trained tokens/s | llmforge is | peak MB | of it beyond imports | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = results.get("1")
    for name, values in results.items():
        tokens = statistics.median(value.tokens_per_second for value in values)
        trained = statistics.median(value.trained_tokens_per_second for value in values)
        ratio = "" if ours is None else f"{paired_ratio(ours, values):.2f}"
        peak = statistics.median(value.peak_bytes for value in values)
        own = statistics.median(value.peak_bytes - value.import_bytes for value in values)
        title = PEERS.get(name, f"llmforge, {name} worker{'' if name == '1' else 's'}")
        memory = f"{peak / 1e6:,.0f} | {own / 1e6:,.0f}"
        rows.append(f"| {title} | {tokens:,.0f} | {trained:,.0f} | {ratio} | {memory} | {values[-1].last_loss:.5f} |")
    return [*rows, *(parts_text(name, values) for name, values in results.items() if name not in PEERS)]


def parts_text(name: str, values: Sequence[Result]) -> str:
    """What the time of a step of llmforge goes into."""
    medians = (statistics.median(value.part_seconds.get(part, 0) for value in values) for part in PARTS)
    parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in zip(PARTS, medians, strict=True))
    return f"{name} worker(s), s per step: {parts}"


def paired_ratio(ours: Sequence[Result], others: Sequence[Result]) -> float:
    """Of trained tokens per second, llmforge to another program; the median of the repetitions."""
    pairs = zip(ours, others, strict=True)
    return statistics.median(one.trained_tokens_per_second / other.trained_tokens_per_second for one, other in pairs)


if __name__ == "__main__":
    main()

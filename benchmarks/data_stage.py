"""The whole data stage on real rows: speed beside other programs, memory and time as rows grow, and the second run.

    python benchmarks/data_stage.py LLAMA_3_FOLDER rows.jsonl [more.jsonl ...] [--part speed|growth|again]

The folder holds the files of a Llama 3 tokenizer; the rows are conversations (`{"messages": [...]}`).

speed   `prepare` from the bytes of a file of 200,000 rows to committed shards, with every check, in a Ray that has
        prepared other rows before, against Hugging Face's encoder on texts rendered beforehand, with as many threads,
        and against the preparation of other programs on a tenth of the given rows (see peers.py). The best of three
        times counts, for the slow ones that of one.
growth  a new process with a new Ray for each number of rows: seconds of the stage, and the most memory that all its
        processes have together, shared pages counted once, without files in the page cache.
again   `llmforge prepare --json` twice: the seconds that it says itself, and those of the whole command.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import peers
import psutil
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmforge.config.families import find_family
from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.dataset.pipeline import prepare
from llmforge.dataset.prepared import PreparedDataset
from llmforge.dataset.row_encoder import RowEncoder
from llmforge.dataset.rows import parse_row
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.prompt.chat_template import chat_template
from llmforge.prompt.messages import Conversation
from llmforge.storage.base import open_storage
from llmforge.train.cluster import start_ray

MODEL = "Meta-Llama-3-8B-Instruct"
TURN_END = "<|eot_id|>"
CONTEXT_LENGTH = 2048
STAGE_ROWS = 200_000
SAMPLES_PER_SECOND = 10


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("rows", type=Path, nargs="+", help="JSONL files of conversations")
    parser.add_argument("--part", choices=["speed", "growth", "again", "one"], action="append")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--num-rows", type=int, nargs="+", default=[50_000, 500_000], help="growth; one: the only one")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace, Path], None]] = {
        "speed": speed, "growth": growth, "again": again, "one": one
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for part in arguments.part or ("speed", "growth", "again"):
            parts[part](arguments, Path(scratch))


def speed(arguments: argparse.Namespace, scratch: Path) -> None:
    """The stage beside the bare encoder and other programs."""
    os.environ |= {"RAYON_NUM_THREADS": str(arguments.workers), "TOKENIZERS_PARALLELISM": "true"}
    lines = read_lines(arguments.rows)
    rows_file = write_rows(scratch / "train.jsonl", lines, STAGE_ROWS)
    start_ray(verbose=False)

    def stage(seed: int) -> int:
        prepared = run_stage(arguments, rows_file, scratch / "runs", seed=seed)
        return prepared.stats.total("tokens")

    stage(-1)
    seeds = iter(range(100))  # another seed holds out other rows, so nothing is found prepared
    table = [("llmforge, the data stage", *best_speed(lambda: stage(next(seeds)), repeats=3))]
    table += [("bare tokenizers, encode_batch_fast", *best_speed(bare_encoder(arguments.tokenizer, lines), repeats=3))]
    tokenizer = peer_tokenizer(arguments.tokenizer)
    kept = [{"messages": json.loads(line)["messages"]} for line in lines[::10]]
    kept = [row for row in kept if all(message["content"].strip() for message in row["messages"])]
    for name, run in peers.preparations(tokenizer, arguments.tokenizer, kept, scratch).items():
        table.append((name, *best_speed(run, repeats=1)))
    print(f"{len(lines)} rows, {arguments.workers} workers or threads")
    for name, tokens, tokens_per_second in table:
        ratio = table[0][2] / tokens_per_second
        print(f"{name:<56}{tokens:>12,} tokens {tokens_per_second / 1e6:>8.3f} Mtok/s, llmforge {ratio:>6.1f} times")


def growth(arguments: argparse.Namespace, scratch: Path) -> None:
    """Time and memory by the number of rows."""
    for num_rows in arguments.num_rows:
        command = [sys.executable, __file__, str(arguments.tokenizer), *map(str, arguments.rows)]
        options = ["--part", "one", "--workers", str(arguments.workers), "--num-rows", str(num_rows)]
        whole = [*command, *options]
        with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True) as process, peak_memory(process.pid) as peak:
            output = process.communicate()[0]
        if process.returncode:
            sys.exit(f"{num_rows} rows: exit code {process.returncode}")
        seconds, tokens = output.split()[-2:]
        print(f"{num_rows:>9,} rows: {float(seconds):7.1f} s, {int(tokens):>13,} tokens, {peak[0] / 2**20:7.0f} MiB")


def one(arguments: argparse.Namespace, scratch: Path) -> None:
    """One run of `growth`: seconds and tokens on stdout."""
    rows_file = write_rows(scratch / "train.jsonl", read_lines(arguments.rows), arguments.num_rows[0])
    start_ray(verbose=False)
    started = time.perf_counter()
    prepared = run_stage(arguments, rows_file, scratch / "runs", seed=0)
    print(time.perf_counter() - started, prepared.stats.total("tokens"))


def again(arguments: argparse.Namespace, scratch: Path) -> None:
    """The first and the second run of the same command."""
    model = scratch / MODEL
    model.mkdir()
    for file in arguments.tokenizer.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 8192}))
    job_file = scratch / "job.yaml"
    keys = job_keys(arguments, arguments.rows[0], scratch / "again", seed=0) | {"model_id": str(model)}
    job_file.write_text(json.dumps(keys))
    command = [str(Path(sys.executable).with_name("llmforge")), "prepare", str(job_file), "--json"]
    for run in ("first", "second"):
        started = time.perf_counter()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output)
        seconds = time.perf_counter() - started
        print(f"{run} run: {found['seconds']:6.2f} s of {seconds:6.2f} s, found prepared: {found['cached']}")


def read_lines(files: Sequence[Path]) -> list[bytes]:
    """The rows of all files."""
    return [line for path in files for line in path.read_bytes().splitlines() if line.strip()]


def write_rows(file: Path, lines: Sequence[bytes], num_rows: int) -> Path:
    """So many rows, the same ones over and over where there are fewer."""
    with file.open("wb") as target:
        for line in islice(cycle(lines), num_rows):
            target.write(line + b"\n")
    return file


def job_keys(arguments: argparse.Namespace, rows_file: Path, output: Path, seed: int) -> dict[str, Any]:
    """A job over the rows, with one in a hundred held out."""
    return {
        "model_id": MODEL,
        "train_path": str(rows_file),
        "output_dir": str(output),
        "accelerator": "cpu",
        "num_devices": arguments.workers,
        "seed": seed + 1,
        "context_length": CONTEXT_LENGTH,
        "dataset": {"valid_fraction": 0.01, "on_invalid": "drop"},
    }


def run_stage(arguments: argparse.Namespace, rows_file: Path, output: Path, seed: int) -> PreparedDataset:
    """What training does before it takes a device."""
    logging.getLogger("llmforge").setLevel(logging.WARNING)
    submitted = JobConfig.model_validate(job_keys(arguments, rows_file, output, seed))
    job = resolve_job(submitted, JobFacts(has_gpu=False, started_at=datetime.now()))
    tokenizer_json = (arguments.tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    storage = open_storage(job.output_dir)
    return prepare(job, TokenizerText(tokenizer_json), storage, output.parent / "cache", model_context_length=8192)


def bare_encoder(folder: Path, lines: Sequence[bytes]) -> Callable[[], int]:
    """Hugging Face's encoder over the texts of the rows, which are rendered beforehand."""
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    prompt_format = llama_3()
    encoder = RowEncoder(prompt_format, SegmentTokenizer(tokenizer_json), "instruction_tuning", "all_turns")
    parsed = (parse_row(line, prompt_format) for line in lines if b'"content": ""' not in line)
    texts = [
        "".join(segment.text for segment in encoder.segments(row)) for row in parsed if isinstance(row, Conversation)
    ]
    bare = Tokenizer.from_str(tokenizer_json)
    return lambda: sum(len(one.ids) for one in bare.encode_batch_fast(texts, add_special_tokens=False))


def peer_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """With the chat template that llmforge exports, so that all programs make the same text and the same mask."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = chat_template(llama_3(), frozenset(tokenizer.all_special_tokens) | {TURN_END})
    tokenizer.eos_token = tokenizer.pad_token = TURN_END
    return tokenizer


def llama_3() -> PromptFormat:
    """The format of the family."""
    family = find_family(MODEL)
    assert family is not None
    return family.prompt_format


def best_speed(run: Callable[[], int], repeats: int) -> tuple[int, float]:
    """(tokens, tokens per second of the best run)."""
    best, tokens = 0.0, 0
    for _ in range(repeats):
        started = time.perf_counter()
        tokens = run()
        best = max(best, tokens / (time.perf_counter() - started))
    return tokens, best


@contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """The most bytes that a process and all it started had together, as the only entry of a list."""
    peak, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(1 / SAMPLES_PER_SECOND):
            peak[0] = max(peak[0], tree_memory(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()


def tree_memory(pid: int) -> int:
    """Proportional set sizes without pages of ordinary files, added up over a process and its children."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        sizes = {
            name: int(value.split()[0]) << 10
            for name, _, value in (line.partition(":") for line in text.splitlines()[1:])
        }
        total += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
    return total


if __name__ == "__main__":
    main()

"""What saving takes from training: steps with a save every so often to a real S3 server, beside steps without any.

    PYTHONPATH=. python benchmarks/save_cost.py .venv-s3/bin

The folder has the programs of the server that the tests use; it is started on this machine, with the lowest priority,
since elsewhere it would take none of these processors. One rank trains a Llama of 15 M parameters with random weights,
all of them, on one thread; a checkpoint with its two Adam moments has 180 MB. Blocks of steps follow one another in
turn: without a save; with one save in the background, as llmforge saves; with one that the training waits for. A
block's time is that of its steps, the save included; what is still on its way at its end is waited for before the next
block, outside of any time. Medians over the repetitions of each kind of block, and of their ratios to the block without
a save in the same repetition.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import boto3
import psutil
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmforge.checkpoint.staging import Staging
from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.training import AdamW
from llmforge.dataset.shards import Sample
from llmforge.storage.patience import open_patiently
from llmforge.train.batches import StepBatches, collate
from llmforge.train.checkpoints import CheckpointWriter, RunIdentity
from llmforge.train.engine import TrainingEngine
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer
from llmforge.train.requests import Request
from llmforge.train.state import TrainerState
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

BUCKET = "saves"
Kind = Literal["without a save", "in the background", "waited for"]
KINDS: tuple[Kind, ...] = ("without a save", "in the background", "waited for")


@dataclass(frozen=True)
class Block:
    """Some steps and at most one save."""

    kind: Kind
    seconds: float
    save_seconds: float
    """Of these, those that the save itself held the training back."""
    arrival_seconds: float
    """From the begin of the save until the checkpoint was complete on the server."""


class Watch:
    """Whom the training tells where it is; nobody is interested here."""

    request = Request()

    def enter(self, phase: str, step: int, *, is_watched: bool = True) -> None:
        """Nothing."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server_bin", type=Path, help="bin folder of an environment with Swift")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--tokens", type=int, default=768, help="of a step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(arguments.server_bin, Path(folder) / "server").start()
        os.environ |= {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }
        for process in psutil.Process().children(recursive=True):
            process.nice(19)
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            blocks = measure(Path(folder), arguments.repetitions, arguments.steps, arguments.tokens)
        finally:
            server.stop()
    print("\n".join(table(blocks, arguments.steps)))


def measure(folder: Path, repetitions: int, num_steps: int, num_tokens: int) -> list[Block]:
    """Blocks of all kinds in turn, in each repetition."""
    engine = build_engine()
    batches = step_batches(num_tokens)
    metrics_file = folder / "metrics.jsonl"
    metrics_file.touch()
    arrivals: list[float] = []
    run_uri = f"s3://{BUCKET}/run"
    writer = CheckpointWriter(
        store=CheckpointStore(open_patiently(run_uri, 60)),
        staging=Staging.of_run(folder / "cache", run_uri),
        engine=engine,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
        identity=RunIdentity("0a1b2c", 1, "model_id: random\n", "data/0", 1),
        record_files=[metrics_file],
        num_to_keep=1,
        supervision=Watch(),
        on_commit=lambda _: arrivals.append(time.perf_counter()),
    )
    state = TrainerState()
    with closing(writer):
        for _ in range(3):  # the first steps lay out memory
            step(engine, batches, state)
        return [
            block(kind, engine, batches, state, writer, arrivals, num_steps)
            for repetition in range(repetitions)
            for kind in (*KINDS[repetition % 3 :], *KINDS[: repetition % 3])
        ]


def block(
    kind: Kind,
    engine: TrainingEngine,
    batches: StepBatches,
    state: TrainerState,
    writer: CheckpointWriter,
    arrivals: list[float],
    num_steps: int,
) -> Block:
    """The save comes after the first step, so that all of its upload falls into the block."""
    started = time.perf_counter()
    step(engine, batches, state)
    save_started = time.perf_counter()
    if kind != "without a save":
        writer.save(state)
    if kind == "waited for":
        writer.finish()
    save_seconds = time.perf_counter() - save_started
    for _ in range(num_steps - 1):
        step(engine, batches, state)
    seconds = time.perf_counter() - started
    writer.finish()
    return Block(kind, seconds, save_seconds, arrivals[-1] - save_started if arrivals else 0.0)


def step(engine: TrainingEngine, batches: StepBatches, state: TrainerState) -> None:
    """One optimizer step."""
    engine.step(batches, learning_rate=1e-4)
    state.step += 1


def build_engine() -> TrainingEngine:
    """One rank on this machine, with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads these
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = build_optimizer(model.parameters(), AdamW(fused=False), 1e-4)
    deepspeed_config = build_deepspeed_config(
        None, zero_stage=0, micro_batch_size=1, gradient_accumulation_steps=1, num_workers=1, precision="fp32",
        max_grad_norm=1.0, hidden_size=384,
    )  # fmt: skip
    return TrainingEngine(NextTokenLoss(model), optimizer, deepspeed_config, torch.device("cpu"))


def step_batches(num_tokens: int) -> StepBatches:
    """One sequence of random tokens, all of them trained."""
    ids = torch.randint(8192, (num_tokens,)).to(torch.int32).numpy()
    sample = Sample(ids, ids, torch.tensor([num_tokens], dtype=torch.int32).numpy())
    return StepBatches([collate([sample])], num_tokens - 1, float(num_tokens - 1), num_tokens)


def table(blocks: list[Block], num_steps: int) -> list[str]:
    """Rows of a Markdown table."""
    rows = [
        "| save | s per step | stolen from the training | save() returns after | complete on the server after |",
        "|---|---|---|---|---|",
    ]
    plain = [one.seconds for one in blocks if one.kind == KINDS[0]]
    for kind in KINDS:
        ours = [one for one in blocks if one.kind == kind]
        per_step = statistics.median(one.seconds for one in ours) / num_steps
        stolen = statistics.median(one.seconds / base - 1 for one, base in zip(ours, plain, strict=True))
        held = statistics.median(one.save_seconds for one in ours)
        arrival = statistics.median(one.arrival_seconds for one in ours)
        saved = (f"{stolen:.1%}", f"{held:.2f} s", f"{arrival:.1f} s") if kind != KINDS[0] else ("", "", "")
        rows.append(f"| {kind} | {per_step:.3f} | {' | '.join(saved)} |")
    return rows


if __name__ == "__main__":
    main()

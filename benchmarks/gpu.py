"""Training steps on one GPU beside other programs: models in the shapes of Llama 3, random weights, packed chats, bf16.

    python benchmarks/gpu.py [--json gpu.json] [--only NAME ...] [--peer-python PATH]
    python benchmarks/gpu.py --tiny

On an H200 all of it takes less than 10 minutes: each program and configuration has a process and a time limit of its
own, so that one that runs out of memory ends alone, and what no longer fits into `--budget-seconds` is left out and
said. Nothing is downloaded. Ours is llmforge's step without Ray (train_bare.py); the others are those of
train_peers.py, and what is not installed is left out. All recompute activations (gradient checkpointing).

Documents have lengths drawn from a log-normal distribution with a median of 270 tokens, the last 35 % of each with a
label, packed by llmforge; a step has 16,384 tokens. Operations are counted by llmforge for every program: what the
model needs, and 6 x parameters x tokens (docs/metrics.md). All weights of the 8B model with AdamW take 16 bytes each,
128 GB, which leaves no room for a step on 141 GB: that configuration does not exist here.

`--tiny` takes small models and steps on a CPU: it shows that all of it works, and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models
from train_peers import build_model
from train_plan import Document, Pack, Plan, Result, read_result, write_plan, write_rows
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.config.accelerators import accelerator_of_device
from llmforge.config.operations import StepOperations
from llmforge.dataset.packing import pack
from llmforge.models.operations import count_operations

HERE = Path(__file__).resolve().parent
OURS = "llmforge"
PROGRAMS = (OURS, "trainer", "trl", "strong", "raw")
TOKENS_PER_STEP = 16_384
MEDIAN_TOKENS = 270
LENGTH_SPREAD = 0.9
"""Of the logarithm of lengths."""
TRAINED_SHARE = 0.35
LLAMA_1B = LlamaConfig(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131_072, tie_word_embeddings=True,
)  # fmt: skip
LLAMA_8B = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=131_072, tie_word_embeddings=False,
)  # fmt: skip
TINY = LlamaConfig(
    vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """A model, how it is trained, and by which program."""

    model: Literal["1b", "8b"]
    method: Literal["full", "lora"]
    context_length: int
    program: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method}-{self.context_length}-{self.program}"


@dataclass(frozen=True)
class Row:
    """One line of the results; without a result what kept it from one."""

    configuration: str
    result: Result | None
    failure: str = ""
    mfu: float | None = None
    """None where the device's peak is not known."""
    mfu_6n: float | None = None


def main() -> None:
    """Measure what there is time for, and print a table."""
    arguments = parse()
    device_name = "cpu" if arguments.tiny else ask(sys.executable, "torch.cuda.get_device_name()")
    deadline = time.monotonic() + arguments.budget_seconds
    rows = []
    for configuration in configurations(arguments):
        left = deadline - time.monotonic()
        if left < arguments.limit_seconds / 2:
            row = Row(configuration.name, None, "left out: no time left (--budget-seconds)")
        else:
            row = measure(configuration, arguments, min(left, arguments.limit_seconds), device_name)
        rows.append(row)
        print(line(row), flush=True)
        if arguments.json is not None:
            found = {"device": device_name, "torch": torch.__version__, "rows": [asdict(one) for one in rows]}
            arguments.json.write_text(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts of names such as 1b-lora-2048-llmforge")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS[:3]])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--attention", default="auto", help="of llmforge")
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--budget-seconds", type=float, default=570)
    parser.add_argument("--limit-seconds", type=float, default=90, help="of one process")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def configurations(arguments: argparse.Namespace) -> Iterator[Configuration]:
    """Those asked for, the programs of one setting one behind the other."""
    kinds: tuple[tuple[Literal["1b", "8b"], Literal["full", "lora"]], ...] = (
        ("8b", "lora"), ("1b", "full"), ("1b", "lora")
    )  # fmt: skip
    for model, method in kinds:
        for context_length in (2048, 8192):
            for program in arguments.programs:
                configuration = Configuration(model, method, context_length, program)
                if arguments.only is None or any(part in configuration.name for part in arguments.only):
                    yield configuration


def measure(configuration: Configuration, arguments: argparse.Namespace, limit_seconds: float, device_name: str) -> Row:
    """One program in a process of its own."""
    is_ours = configuration.program == OURS
    script = ["train_bare.py"] if is_ours else ["train_peers.py", configuration.program]
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        folder = Path(scratch)
        plan = make_material(configuration, arguments, folder)
        python = sys.executable if is_ours else arguments.peer_python
        command = [python, str(HERE / script[0]), *script[1:], str(folder)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_seconds
            )
        except subprocess.TimeoutExpired:
            return Row(configuration.name, None, f"stopped after {limit_seconds:.0f} s")
        if done.returncode:
            return Row(configuration.name, None, last_error(done.stdout))
        result = read_result(folder / f"{configuration.program}.json")
        return with_mfu(Row(configuration.name, result), count(plan), device_name)


def make_material(configuration: Configuration, arguments: argparse.Namespace, folder: Path) -> Plan:
    """The model's configuration, a tokenizer for those that want one, the rows and the plan."""
    config = {"1b": LLAMA_1B, "8b": LLAMA_8B}[configuration.model]
    context_length, tokens_per_step = configuration.context_length, TOKENS_PER_STEP
    if arguments.tiny:
        config, context_length, tokens_per_step = TINY, context_length // 16, TOKENS_PER_STEP // 16
    model = folder / "model"
    config.save_pretrained(model)
    vocabulary = {"<unk>": 0, "<eos>": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(model)
    plan = Plan(
        model_folder=str(model),
        num_steps=arguments.num_steps,
        sequences_per_step=tokens_per_step // context_length,
        context_length=context_length,
        precision="bf16",
        method=configuration.method,
        device="cpu" if arguments.tiny else "cuda",
        threads=1 if arguments.tiny else 8,
        gradient_checkpointing=True,
        attention=arguments.attention,
    )
    write_plan(folder / "plan.json", plan)
    write_rows(folder / "rows.json", list(random_packs(plan, config.vocab_size)))
    return plan


def random_packs(plan: Plan, vocabulary: int) -> Iterator[Pack]:
    """As many as the plan takes; the same for the same context."""
    generator = np.random.default_rng(1)
    num_packs = plan.num_steps * plan.sequences_per_step
    num_documents = 2 * num_packs * plan.context_length // MEDIAN_TOKENS + num_packs
    drawn = generator.lognormal(np.log(MEDIAN_TOKENS), LENGTH_SPREAD, num_documents)
    lengths = np.clip(drawn.astype(np.int64), 8, plan.context_length)
    packed = list(pack(lengths, plan.context_length))[:num_packs]
    assert len(packed) == num_packs
    for members in packed:
        yield [document_of(int(lengths[index]), vocabulary, generator) for index in members]


def document_of(length: int, vocabulary: int, generator: np.random.Generator) -> Document:
    """Random tokens, the last of them with a label."""
    ids = generator.integers(2, vocabulary, length).tolist()
    num_prompt = length - max(1, round(TRAINED_SHARE * length))
    return Document(ids, [-100] * num_prompt + ids[num_prompt:])


def count(plan: Plan) -> StepOperations:
    """The operations of a step, of a model without memory."""
    model: PreTrainedModel = build_model(replace(plan, device="meta"))
    return count_operations(model)


def with_mfu(row: Row, operations: StepOperations, device_name: str) -> Row:
    """With the share of the device's peak, where that is known."""
    accelerator, result = accelerator_of_device(device_name), row.result
    if accelerator is None or accelerator.peak_tflops is None or result is None:
        return row
    needed = operations.of_step(result.num_tokens, result.num_trained_tokens, result.num_token_pairs)
    possible = accelerator.peak_tflops * 1e12 * result.seconds
    return replace(row, mfu=needed.operations / possible, mfu_6n=needed.operations_6n / possible)


def last_error(output: str) -> str:
    """The line that tells why a process ended."""
    lines = [text for text in output.splitlines() if "Error" in text]
    return lines[-1].strip()[:300] if lines else output[-300:]


def ask(python: str, expression: str) -> str:
    """What an expression of torch is, in a process that ends and gives the device back."""
    code = f"import torch; print({expression})"
    return subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def line(row: Row) -> str:
    """A row of a Markdown table."""
    if row.result is None:
        return f"| {row.configuration} | {row.failure} |"
    numbers: Sequence[str] = (
        f"{row.result.tokens_per_second:,.0f} tokens/s",
        f"{row.result.trained_tokens_per_second:,.0f} trained tokens/s",
        "" if row.mfu is None or row.mfu_6n is None else f"MFU {row.mfu:.1%}, by 6N {row.mfu_6n:.1%}",
        f"{row.result.peak_bytes / 1e9:.1f} GB",
    )
    return f"| {row.configuration} | {' | '.join(numbers)} |"


if __name__ == "__main__":
    main()

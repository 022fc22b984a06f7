"""Rows to labels: render, mask, tokenize and check, against the bare tokenizer and other programs on the same rows.

    python benchmarks/tokenize_rows.py LLAMA_3_FOLDER rows.jsonl [more.jsonl ...] [--threads 1] [--max-rows 20000]

The folder holds the files of a Llama 3 tokenizer; the rows are conversations (`{"messages": [...]}`). Everything runs
in one process, one after the other; the best of three times counts, and ratios are to Hugging Face's encoder on the
texts alone, rendered beforehand. Ours begins with the bytes of the file and ends with ids, labels and the results of
all checks. `apply_chat_template` and TRL run once over a tenth of the rows, since they are slow. TRL takes part where
it is installed: the construction of an `SFTTrainer` over these rows, with a model of a few parameters.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import peers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmforge.config.families import find_family
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.encoders import TextEncoders, prove_fast_encoders
from llmforge.dataset.row_encoder import RowEncoder
from llmforge.dataset.rows import parse_row
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.chat_template import chat_template
from llmforge.prompt.document import TrainingRow, texts_of

TURN_END = "<|eot_id|>"
ROWS_PER_BLOCK = 2000


@dataclass(frozen=True)
class Contender:
    """One way from rows to ids."""

    name: str
    run: Callable[[], int]
    """Does it and returns the number of tokens."""
    repeats: int = 3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("rows", type=Path, nargs="+", help="JSONL files of conversations")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoders")
    parser.add_argument("--max-rows", type=int, default=20000)
    arguments = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "true"}
    lines = [line for path in arguments.rows for line in path.read_bytes().splitlines() if line.strip()]
    lines = lines[: arguments.max_rows]
    family = find_family("Meta-Llama-3-8B-Instruct")
    assert family is not None
    own = own_ways(arguments.tokenizer, lines, family.prompt_format)
    others = other_programs(arguments.tokenizer, lines[: len(lines) // 10], family.prompt_format)
    table = [measure(contender) for contender in [*own, *others]]
    print(f"{arguments.threads} thread(s), {len(lines)} rows")
    for name, tokens, speed in table:
        print(f"{name:<60}{tokens:>11,} tokens {speed / 1e6:>8.2f} Mtok/s {speed / table[0][2]:>8.2f} x")


def measure(contender: Contender) -> tuple[str, int, float]:
    """(name, tokens, tokens per second of the best run)."""
    best, tokens = float("inf"), 0
    for _ in range(contender.repeats):
        gc.collect()
        started = time.perf_counter()
        tokens = contender.run()
        best = min(best, time.perf_counter() - started)
    return contender.name, tokens, tokens / best


def own_ways(folder: Path, lines: Sequence[bytes], prompt_format: PromptFormat) -> list[Contender]:
    """The bare encoders, and ours over them."""
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    slow, fast = (row_encoder(tokenizer_json, prompt_format, fast=fast) for fast in (False, True))
    rows = parse(lines, prompt_format)
    texts = ["".join(segment.text for segment in slow.segments(row)) for row in rows]
    bare, bare_fast = Tokenizer.from_str(tokenizer_json), TextEncoders(tokenizer_json, fast=True)
    contents = [text for row in rows for text in texts_of(row)]
    proven = prove_fast_encoders(TextEncoders(tokenizer_json), tokenizer_json, contents[:500])
    assert isinstance(proven, TextEncoders), proven
    fast.encode(rows[:100])
    return [
        Contender(
            "bare tokenizers, encode_batch_fast on rendered texts",
            lambda: sum(len(one.ids) for one in bare.encode_batch_fast(texts, add_special_tokens=False)),
        ),
        Contender(
            "bare fastokens, encode_batch_flat on contents",
            lambda: len(bare_fast.encode(contents, dummy_prefix=False).ids),
        ),
        Contender(
            "llmforge with fastokens, bytes to checked labels",
            lambda: in_blocks(fast, lines, prompt_format),
        ),
        Contender(
            "llmforge with tokenizers, bytes to checked labels",
            lambda: in_blocks(slow, lines, prompt_format),
        ),
    ]


def row_encoder(tokenizer_json: str, prompt_format: PromptFormat, *, fast: bool) -> RowEncoder:
    """As the data stage makes it."""
    tokenizer = SegmentTokenizer(tokenizer_json, TextEncoders(tokenizer_json, fast=fast))
    return RowEncoder(prompt_format, tokenizer, "instruction_tuning", "all_turns")


def in_blocks(encoder: RowEncoder, lines: Sequence[bytes], prompt_format: PromptFormat) -> int:
    """As a task of the data stage does it: block by block."""
    blocks = (lines[start : start + ROWS_PER_BLOCK] for start in range(0, len(lines), ROWS_PER_BLOCK))
    return sum(len(encoder.encode(parse(block, prompt_format)).examples.labels) for block in blocks)


def parse(lines: Sequence[bytes], prompt_format: PromptFormat) -> list[TrainingRow]:
    """The rows that can be trained on."""
    rows = []
    for line in lines:
        try:
            rows.append(parse_row(line, prompt_format))
        except DataError:
            continue
    return rows


def other_programs(folder: Path, lines: Sequence[bytes], prompt_format: PromptFormat) -> list[Contender]:
    """With the chat template that we export, so that all of them make the same ids and the same mask."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = chat_template(prompt_format, frozenset(tokenizer.all_special_tokens) | {TURN_END})
    tokenizer.eos_token = tokenizer.pad_token = TURN_END
    rows = [{"messages": row["messages"]} for row in map(msgspec.json.decode, lines) if has_no_empty_message(row)]

    def apply_chat_template() -> int:
        encoded = (
            tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
            for row in rows
        )
        return sum(len(one["input_ids"]) for one in encoded)

    found = [Contender("transformers, apply_chat_template with its mask", apply_chat_template, repeats=1)]
    if find_spec("trl") is not None:
        found.append(
            Contender(
                "TRL, SFTTrainer with assistant_only_loss", peers.trl(tokenizer, rows, num_processes=None), repeats=1
            )
        )
    return found


def has_no_empty_message(row: dict[str, Any]) -> bool:
    """Whether all programs take a row."""
    return all(message["content"].strip() for message in row["messages"])


if __name__ == "__main__":
    main()

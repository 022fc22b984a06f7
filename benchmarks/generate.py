"""Answers to a file of prompts: tokens/s of `generate_batch` beside `generate` of transformers on the same prompts.

    python benchmarks/generate.py MODEL_FOLDER prompts.jsonl [--num-prompts 96] [--batch-size 16] [--max-tokens 64]

The folder holds a Llama and its tokenizer; of every row the first user message is asked, with `<s>` before it. All take
the most probable token, in one process, one after the other, in turns; the best of `--repetitions` counts. transformers
takes the prompts in their given order: one at a time, and `--batch-size` at a time padded on the left. llmforge takes
messages and gives texts, with as many rows at a time and with its own choice. That all give the same tokens is checked.
`--scale N` repeats the layers of the model N times and thereby takes N times the arithmetic; its answers mean nothing.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.inference.chat_model import ChatModel
from llmforge.inference.generate import Generator
from llmforge.inference.load import TrainedModel, quiet_transformers
from llmforge.models.folder import read_tokenizer_json
from llmforge.models.load import load_tokenizer

FORMAT = {"bos": "<s>", "system": "{instruction} ", "user": "{instruction}", "assistant": " {instruction}</s>"}
CONTEXT_LENGTH = 512


@dataclass(frozen=True)
class Work:
    """What is to be answered, and by what."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    chat: ChatModel
    texts: list[str]
    batch_size: int
    max_tokens: int


def main() -> None:
    """Measure and print a table."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    quiet_transformers()
    work = prepare(options)
    contenders: dict[str, Callable[[Work], list[str]]] = {
        "transformers, one at a time": lambda work: plain(work, 1),
        f"transformers, {work.batch_size} at a time": lambda work: plain(work, work.batch_size),
        f"generate_batch, {work.batch_size} at a time": lambda work: ours(work, work.batch_size),
        "generate_batch, its own choice": lambda work: ours(work, None),
    }
    best: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    for _ in range(options.repetitions):
        for name, run in contenders.items():
            started = time.perf_counter()
            answers[name] = run(work)
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - started)
    first = next(iter(answers.values()))
    num_tokens = sum(len(work.tokenizer.encode(text, add_special_tokens=False)) for text in first)
    print(f"{len(first)} prompts, {num_tokens} tokens of answers, {torch.get_num_threads()} threads")
    slowest = max(best.values())
    for name, seconds in best.items():
        same = sum(answer == expected for answer, expected in zip(answers[name], first, strict=True))
        rate = num_tokens / seconds
        print(f"| {name} | {seconds:.2f} s | {rate:.0f} tokens/s | x{slowest / seconds:.1f} | {same} the same |")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=int, default=1)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> Work:
    """The model, both ways of asking it, and prompts that leave room for an answer."""
    model = LlamaForCausalLM.from_pretrained(options.model).eval()
    layers = [copy.deepcopy(layer) for layer in model.model.layers for _ in range(options.scale)]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(layers), len(layers)
    tokenizer = load_tokenizer(options.model)
    with options.prompts.open(encoding="utf-8") as file:
        texts = [json.loads(line)["messages"][0]["content"].strip() for line in file]
    longest = CONTEXT_LENGTH - options.max_tokens
    fitting = (text for text in texts if len(tokenizer.encode(text)) < longest)
    chosen = [text for text, _ in zip(fitting, range(options.num_prompts), strict=False)]
    chat = ChatModel(Generator(trained_model(model, tokenizer, options)))
    return Work(model, tokenizer, chat, chosen, options.batch_size, options.max_tokens)


def trained_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> TrainedModel:
    """The model as if llmforge had trained it."""
    keys = {
        "model_id": str(options.model),
        "train_path": "none",
        "generation_config": {"prompt_format": FORMAT, "max_tokens": options.max_tokens},
    }
    end_of_sequence_ids = frozenset({tokenizer.eos_token_id})
    model.generation_config = GenerationConfig()
    return TrainedModel(
        model=model,
        encoder=SegmentTokenizer(read_tokenizer_json(options.model)),
        decoder=tokenizer,
        end_of_sequence_ids=end_of_sequence_ids,
        job=JobConfig.model_validate_json(json.dumps(keys)),
        checkpoint=CheckpointInfo("step-00000000-a", 0, 1, datetime.now(timezone.utc), {}, ()),
    )


def plain(work: Work, batch_size: int) -> list[str]:
    """transformers alone, as its documentation has it."""
    answers: list[str] = []
    work.tokenizer.pad_token, work.tokenizer.padding_side = "<unk>", "left"
    for first in range(0, len(work.texts), batch_size):
        texts = [f"<s>{text}" for text in work.texts[first : first + batch_size]]
        inputs = work.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        output = work.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=work.max_tokens,
            eos_token_id=work.tokenizer.eos_token_id,
            pad_token_id=0,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += work.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.removeprefix(" ") for answer in answers]


def ours(work: Work, batch_size: int | None) -> list[str]:
    """Messages in, texts out."""
    asked = [[{"role": "user", "content": text}] for text in work.texts]
    answers = work.chat.generate_batch(asked, batch_size)
    # The decoder of transformers drops the space at the begin of a text, which may be more than the template's own.
    return [answer.removeprefix(" ") for answer in answers]


if __name__ == "__main__":
    main()

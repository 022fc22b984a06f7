"""`llmforge generate`: answers on stdout, everything else on stderr."""

import json
from collections.abc import Iterator
from pathlib import Path

from llmforge.cli.places import cache_folder
from llmforge.errors import ConfigError, DataError


def run_generate(
    source: str,
    prompt: str | None,
    messages_file: Path | None,
    checkpoint: str,
    *,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Answer one prompt as a stream of text, or every line of a file as one JSON object a line."""
    if (prompt is None) == (messages_file is None):
        raise ConfigError("give either --prompt TEXT or --messages FILE.jsonl")
    prompts = [] if messages_file is None else list(_read_messages(messages_file))
    from llmforge.inference.generate import Sampling, open_generator

    generator = open_generator(source, checkpoint, cache_folder())
    sampling = Sampling(max_tokens, temperature)
    if prompt is not None:
        for piece in generator.stream(generator.parse([{"role": "user", "content": prompt}]), sampling):
            print(piece, end="", flush=True)
        print()
        return
    for line, messages in prompts:
        try:
            conversation = generator.parse(messages)
        except DataError as error:
            raise DataError(f"{messages_file}:{line}: {error}") from error
        answer = {"role": "assistant", "content": generator.answer(conversation, sampling)}
        print(json.dumps({"messages": [*messages, answer]}, ensure_ascii=False), flush=True)


def _read_messages(path: Path) -> Iterator[tuple[int, list[dict[str, object]]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; --messages names a JSONL file with `messages` on every line")
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
            raise DataError(f"{path}:{number}: expected an object with a `messages` list")
        yield number, row["messages"]

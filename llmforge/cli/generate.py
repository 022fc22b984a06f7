"""`llmforge generate`: answers on stdout, everything else on stderr."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from llmforge.cli.places import cache_folder
from llmforge.errors import ConfigError, DataError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def run_generate(
    source: str,
    prompt: str | None,
    messages_file: Path | None,
    checkpoint: str,
    *,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Answer one prompt as a stream of text, or every line of a file as one JSON object a line.

    A file is checked as a whole before its first line is answered. Raises `LlmforgeError`.
    """
    if (prompt is None) == (messages_file is None):
        raise ConfigError("give either --prompt TEXT or --messages FILE.jsonl")
    rows = [] if messages_file is None else _read_messages(messages_file)
    from llmforge.inference.generate import open_generator
    from llmforge.inference.sampling import Sampling

    generator = open_generator(source, checkpoint, cache_folder())
    sampling = Sampling(max_tokens, temperature)
    if messages_file is None:
        for piece in generator.stream(generator.parse([{"role": "user", "content": prompt}]), sampling):
            print(piece, end="", flush=True)
        print()
        return
    conversations = _for_all(messages_file, rows, generator.parse)
    for (line, messages), (_, conversation) in zip(rows, conversations, strict=True):
        [(_, text)] = _for_all(messages_file, [(line, conversation)], lambda item: generator.answer(item, sampling))
        answer = {"role": "assistant", "content": text}
        print(json.dumps({"messages": [*messages, answer]}, ensure_ascii=False), flush=True)


def _read_messages(path: Path) -> list[tuple[int, list[object]]]:
    """The messages of every line that is not blank, with its number."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; --messages names a JSONL file with `messages` on every line")
    # Not `splitlines`: it takes characters for line ends that may stand inside a JSON string.
    lines = enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    rows = _for_all(path, ((number, line) for number, line in lines if line.strip()), _parse_line)
    if not rows:
        raise DataError(f"{path}: no rows; expected one JSON object with `messages` per line")
    return rows


def _parse_line(line: bytes) -> list[object]:
    try:
        row = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise DataError("expected an object with a `messages` list")
    messages: list[object] = row["messages"]
    return messages


def _for_all(
    path: Path, items: Iterable[tuple[int, _Item]], function: Callable[[_Item], _Result]
) -> list[tuple[int, _Result]]:
    """The results for numbered lines of a file. Raises one `DataError` that names every line which has one."""
    results: list[tuple[int, _Result]] = []
    problems: list[str] = []
    for number, item in items:
        try:
            results.append((number, function(item)))
        except DataError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return results

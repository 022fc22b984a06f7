"""`llmforge chat`: a conversation in the terminal."""

from __future__ import annotations

import select
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from llmforge.cli.chat_session import ChatSession
from llmforge.cli.label_text import probabilities_text
from llmforge.cli.places import cache_folder
from llmforge.errors import DataError
from llmforge.metrics.summary import printable_text

if TYPE_CHECKING:
    from llmforge.answers.sampling import Sampling
    from llmforge.inference.generate import Generator

_PASTE_SECONDS = 0.05
"""A terminal hands over the next line of a pasted text sooner, and no person writes one so quickly."""


def run_chat(
    source: str, checkpoint: str, system: str | None, sampling: Sampling, threshold: float | None = None
) -> None:
    """Read a message, stream the answer, keep the history, until Ctrl-D or `/exit`. Raises `LlmforgeError`."""
    from llmforge.answers.asked import check_asked
    from llmforge.inference.find import find_trained_model

    found = find_trained_model(source, checkpoint, cache_folder())
    check_asked(found.classifier, sampling, threshold)
    from llmforge.inference.generate import open_generator

    generator = open_generator(found)
    session = ChatSession(system)
    _edit_lines()
    print("Write a message and press Enter. Ctrl-C stops an answer, Ctrl-D leaves, /help says more.", file=sys.stderr)
    while True:
        try:
            turn = session.read(_read_message())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        if turn.leaves:
            return
        if turn.notice is not None:
            print(turn.notice, file=sys.stderr)
        if turn.messages is None:
            continue
        if generator.trained.classifier is not None:
            _show_label(generator, turn.messages, threshold)  # which asks about each message by itself
        else:
            session.answered(_show_answer(generator, turn.messages, sampling))


def _show_answer(generator: Generator, messages: list[dict[str, str]], sampling: Sampling) -> str:
    """Print an answer as it comes; what came of it until its end, or until Ctrl-C."""
    answer = ""
    try:
        with closing(generator.stream(generator.parse(messages), sampling)) as stream:
            print("model: ", end="", flush=True)
            for piece in stream:
                answer += piece
                print(printable_text(piece), end="", flush=True)
            print()
    except KeyboardInterrupt:
        print(" ...\n(stopped)", file=sys.stderr)
    except DataError as error:
        print(f"{printable_text(str(error))}\n(the message is left out; /reset forgets the others)", file=sys.stderr)
    return answer


def _show_label(generator: Generator, messages: list[dict[str, str]], threshold: float | None) -> None:
    try:
        found = generator.classify(generator.parse(messages), threshold)
    except DataError as error:
        print(printable_text(str(error)), file=sys.stderr)
        return
    print(f"label: {printable_text(found.label)} ({probabilities_text(found.probabilities)})")


def _read_message() -> str:
    """A line, or all lines of a pasted text."""
    lines = [input("you: ")]
    while sys.stdin.isatty() and select.select([sys.stdin], [], [], _PASTE_SECONDS)[0]:
        lines.append(input())
    return "\n".join(lines)


def _edit_lines() -> None:
    """Arrow keys, search and history, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    # A terminal that marks pasted text has its lines come as one.
    readline.parse_and_bind("set enable-bracketed-paste on")
